"""Tasks in the worker processes of a dask cluster: one that this process starts, or an existing one at an address.

A task goes to a worker with the keys and hashes of the cache entries it reads, and comes back with those of the entries
it made. Where a worker does not read this process's cache folder, the entries themselves travel, and every file is
checked against its hash on arrival.
"""

import logging
import os
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from distributed import Client, Future, KilledWorker, LocalCluster, as_completed
from distributed.client import FutureCancelledError
from distributed.protocol import deserialize, serialize
from threadpoolctl import threadpool_limits

from husai_lib.errors import EvidenceError, HusaiError, ParameterError, StepError
from husai_lib.evidence.cache import (
    Entry,
    NotCached,
    cache_folder,
    contents,
    looked_up,
    noted_entries,
    receive,
    versions,
)
from husai_lib.evidence.code import library_hash
from husai_lib.files import sha256_text, write_text
from husai_lib.tasks.options import Progress, device, jobs, resources
from husai_lib.tasks.threads import on_one_thread

CONNECT_SECONDS = 20
RETRIES = 1
"""How often a task that raised an error is tried again, perhaps by another worker."""
NAMED = 3
"""Failed tasks that an error names."""
OWN_FOLDER = os.environ.get("HUSAI_CACHE", "")
"""The cache folder that this worker was started with, for tasks whose folder it cannot read."""
Task = TypeVar("Task")
Result = TypeVar("Result")
Sent = tuple[str, str, dict[str, str], dict[str, bytes]]
"""Kind, key, hashes and contents of an entry."""
Packed = tuple[dict[str, Any], list[bytes]]
"""A value as dask serialises it."""
SHARED_FILE = ".shared"
for _name in ("distributed", "distributed.client"):  # what matters is raised, in one sentence
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Home:
    """The process whose tasks a worker runs, and what both must have in common."""

    folder: str
    token: str
    """What the file `.shared` of its cache folder says."""
    shared: bool
    """Whether all workers read and write this folder."""
    device: str
    code: str
    versions: dict[str, str]


# --- the cluster -------------------------------------------------------------------------------------


class _OneWorkerAGpu(LocalCluster):  # type: ignore[misc]
    """Workers of this machine that see one GPU each."""

    def new_worker_spec(self) -> dict[Any, Any]:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        return {
            name: spec | {"options": spec["options"] | {"env": {"CUDA_VISIBLE_DEVICES": seen.split(",")[int(name)]}}}
            for name, spec in super().new_worker_spec().items()
        }


@cache
def start_local() -> str:
    """Start a cluster that ends with this process, and return its address: a worker a job or, with `GPU`, a GPU."""
    needs = resources()
    cluster = _OneWorkerAGpu if "GPU" in needs else LocalCluster
    count = torch.cuda.device_count() if "GPU" in needs else jobs()
    if count < 1:
        raise ParameterError("--resources GPU=1: torch finds no CUDA device; leave it out or name a --scheduler")
    options = {"resources": needs or None, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    local = cluster(n_workers=0, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", **options)
    local.scale(count)
    _STARTED.append(local)
    return str(local.scheduler_address)


_STARTED: list[LocalCluster] = []  # one that nothing refers to would end
_CLIENTS: dict[str, Client] = {}


def connected(kind: type[HusaiError] = StepError) -> Client:
    """A client of the cluster at `$HUSAI_SCHEDULER`, or of one that this process starts; `kind` is what it raises."""
    address = os.environ.get("HUSAI_SCHEDULER") or start_local()
    if address not in _CLIENTS or _CLIENTS[address].status != "running":
        try:
            _CLIENTS[address] = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise kind(f"--scheduler {address}: no dask scheduler answers ({why}); start it and its workers") from None
    return _CLIENTS[address]


def address() -> str:
    """The address of the cluster's scheduler, which answers there. Raises ParameterError for options that cannot be."""
    resources()
    client = connected(ParameterError)
    assert client.scheduler
    found = str(client.scheduler.address)
    client.close()
    return found


def count() -> int:
    """Number of workers that the cluster has now, at least 1."""
    return max(1, len(_workers(connected())))


def _workers(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


# --- in this process ---------------------------------------------------------------------------------


def run(
    function: Callable[[Task], Result], tasks: Sequence[Task], what: str, progress: Progress | None = None
) -> list[Result]:
    """The results in the order of the tasks; what is done stays in the cache, whatever happens to the cluster.

    A task whose worker is lost starts again on another. Once all others are done, raises the error of a task that
    failed wherever it ran, and StepError if the scheduler is lost.
    """
    client = connected()
    if tasks and not _workers(client):
        if progress:
            progress(0, len(tasks), f"{what} (waiting for a worker)")
        client.wait_for_workers(1)
    _check_resources(client)
    home = _home(client)
    results, futures, sources = dict[int, Result](), dict[Future, int](), dict[str, Future]()
    for i, task in enumerate(tasks):
        found = () if home.shared else _looked_up(function, task)
        if found:
            results[i] = found[0]
        else:
            futures[_submitted(client, home, (function, task), what, sources)] = i
    failed: dict[int, BaseException] = {}
    for future in as_completed(futures, loop=client.loop):
        i = futures[future]
        try:
            if future.status == "error":
                failed[i] = future.exception()
            else:
                results[i] = _received(future.result())
        except HusaiError as error:
            failed[i] = error
        except (FutureCancelledError, OSError):
            raise _lost(client, len(results), len(tasks), what) from None
        future.release()  # or its worker would keep the result
        if progress:
            progress(len(results) + len(failed), len(tasks), what)
    if failed:
        raise _error_of([(_named(tasks[i]), failed[i]) for i in sorted(failed)], len(tasks), what)
    return [results[i] for i in range(len(tasks))]


def _looked_up(function: Callable[[Task], Result], task: Task) -> tuple[Result] | tuple[()]:
    """The result of a task that this process's cache has; a worker that does not share it would do it again."""
    try:
        return (looked_up(function, task),)
    except (NotCached, HusaiError):
        return ()


def _check_resources(client: Client) -> None:
    """Raises ParameterError where tasks would wait forever for what no worker has."""
    there = _workers(client).values()
    for name, amount in resources().items():
        if there and all(worker.get("resources", {}).get(name, 0) < amount for worker in there):
            raise ParameterError(f"--resources {name}={amount:g}: no worker has it; start workers with it")


def _home(client: Client) -> Home:
    """What workers must know of this process. Raises ParameterError for a worker that cannot do its tasks."""
    folder = cache_folder().absolute()
    if not (folder / SHARED_FILE).exists():
        write_text(folder / SHARED_FILE, secrets.token_hex(16))
    home = Home(str(folder), _token(folder), True, device(), library_hash(), versions())
    found = client.run(shares, home, on_error="return")
    for address, error in found.items():
        if isinstance(error, Exception) and not isinstance(error, OSError):  # the latter: it is gone already
            raise ParameterError(f"worker {address}: {_why(error)}") from error
    return replace(home, shared=all(answer is True for answer in found.values()))


def _submitted(client: Client, home: Home, job: Any, name: str, sources: dict[str, Future]) -> Future:
    """The future result of a job: a function and its task. Its name and content are its key, so it is done once.

    Jobs of one name are of one kind to dask, which then keeps most of them back until a worker is free. So few tasks
    are lost, and counted as suspects, with a worker that dies.
    """
    with noted_entries() as entries:
        packed = _packed(job)
    needed = [] if home.shared else entries
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dask advises against large contents; a shared folder avoids them
        for entry in needed:
            if entry.key not in sources:
                sources[entry.key] = client.submit(tuple, _sent(entry), key=f"entry-{home.token}-{entry.key}")
    given = [sources[entry.key] for entry in needed]
    key = f"{name}-{sha256_text(repr([home, packed]))}"
    return client.submit(work, home, packed, given, key=key, retries=RETRIES, resources=resources() or None)


def _received(result: tuple[Packed, list[Sent]]) -> Any:
    packed, made = result
    for sent in made:
        receive(*sent)
    return deserialize(*packed)


def _lost(client: Client, done: int, total: int, what: str) -> StepError:
    client.close(timeout=1)
    where = os.environ.get("HUSAI_SCHEDULER") or "of this process"
    return StepError(f"the dask scheduler {where} was lost; {done} of {total} {what} are done and kept")


def _error_of(failed: Sequence[tuple[str, BaseException]], total: int, what: str) -> HusaiError:
    first = failed[0][1]
    kind = type(first) if isinstance(first, HusaiError) else StepError
    told = "; ".join(f"{name}: {_why(error)}" for name, error in failed[:NAMED])
    return kind(f"{told} ({len(failed)} of {total} tasks failed, the others are done; {what})")


def _why(error: BaseException) -> str:
    if isinstance(error, KilledWorker):
        return "every worker that ran it died (out of memory?)"
    return f"{'' if isinstance(error, HusaiError) else f'{type(error).__name__}: '}{error}"


def _named(task: Any) -> str:
    return ", ".join(map(str, task)) if isinstance(task, list) else str(task)


def _sent(entry: Entry) -> Sent:
    return entry.kind, entry.key, entry.files, contents(entry)


def _packed(value: Any) -> Packed:
    header, frames = serialize(value, serializers=["pickle"], on_error="raise")
    return header, [bytes(frame) for frame in frames]


# --- in a worker -------------------------------------------------------------------------------------


def shares(home: Home) -> bool:
    """Whether this worker reads the cache folder of the process it works for.

    Raises ParameterError if it has other code, other packages or not the device.
    """
    if library_hash() != home.code:
        raise ParameterError("it has another version of husai_lib; install the same and restart it")
    if other := [f"{name} {mine}" for name, mine in versions().items() if home.versions.get(name) != mine]:
        raise ParameterError(f"it has {', '.join(other)}, unlike this process; install the same and restart it")
    os.environ["HUSAI_DEVICE"] = home.device
    device()
    return _token(Path(home.folder)) == home.token


def work(home: Home, job: Packed, given: Sequence[Sent]) -> tuple[Packed, list[Sent]]:
    """Do a job; its result, with the entries that it made where workers do not share the folder."""
    shared = shares(home)
    if home.shared and not shared:
        raise EvidenceError(f"the worker does not share {home.folder}, as the others do; mount it there")
    own = {"HUSAI_CACHE": home.folder if shared else OWN_FOLDER, "HUSAI_EXECUTOR": "threads", "HUSAI_JOBS": "1"}
    os.environ |= own
    for sent in given:
        receive(*sent)
    function, task = deserialize(*job)
    with threadpool_limits(1), noted_entries() as entries:
        result = _packed(on_one_thread(function, task))
    known = {key for _, key, _, _ in given}
    return result, [] if home.shared else [_sent(entry) for entry in entries if entry.key not in known]


def _token(folder: Path) -> str:
    """What the token file of a cache folder says; empty where it cannot be read."""
    try:
        return (folder / SHARED_FILE).read_text(encoding="ascii")
    except OSError:
        return ""
