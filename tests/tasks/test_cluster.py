"""Tasks in worker processes: the same bits as on threads, whether workers share the cache folder or not."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_banks import bank_of, dictionary, sparse_rows
from threadpoolctl import threadpool_info

from husai_lib.activations.banks import Bank
from husai_lib.activations.texts import ProbingSet
from husai_lib.errors import DataError, EvidenceError, IntegrityError, ParameterError, StepError
from husai_lib.evidence.cache import Entry, cached, contents, open_entry, receive
from husai_lib.measures.probing import ProbeTask, sae_scores
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.params.conditions import Condition
from husai_lib.saes.stack import stacks_of
from husai_lib.saes.training import members, train_bank
from husai_lib.tasks import cluster, run_tasks, workers

WORKERS = 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder that workers have where they do not read that of the test."""
    return tmp_path_factory.mktemp("of_workers")


@pytest.fixture(scope="module")
def local(own_folder: Path) -> Iterator[str]:
    """The address of four workers of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("JOBS", str(WORKERS)), ("DEVICE", "cpu"), ("CACHE", str(own_folder))):
            patch.setenv(f"HUSAI_{name}", value)
        address = cluster.start_local()
        patch.setenv("HUSAI_SCHEDULER", address)
        cluster.connected().wait_for_workers(WORKERS)
    yield address
    cluster._CLIENTS.pop(address).close()
    cluster._STARTED.pop().close()
    cluster.start_local.cache_clear()


@pytest.fixture
def dask(local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks go to the workers, and the cache is new."""
    given = {"EXECUTOR": "dask", "SCHEDULER": local, "DEVICE": "cpu", "CACHE": str(tmp_path / "cache")}
    for name, value in given.items():
        monkeypatch.setenv(f"HUSAI_{name}", value)
    return tmp_path / "cache"


@pytest.fixture
def unshared(dask: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `dask`, but the name of the cache folder means another folder, which is not there, in each worker."""
    monkeypatch.chdir(dask.parent)
    monkeypatch.setenv("HUSAI_CACHE", "/proc/self/cwd/cache")
    if not Path("/proc/self/cwd").exists():
        pytest.skip("no /proc, by which one name means another folder in each process")
    shutil.rmtree(own_folder)
    return own_folder


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, ProbingSet]:
    """Rows to train on, and 400 labelled rows of the same kind."""
    values = sparse_rows(dictionary(32, 16), 1424, active=3, seed=1).numpy()
    labels = (values[1024:, 0] > np.median(values[1024:, 0])).astype(int)
    return values, ProbingSet("rows", tuple(f"prompt {i}" for i in range(400)), labels, ("below", "above"))


def bank_and_task(data: tuple[np.ndarray, ProbingSet]) -> tuple[Bank, ProbeTask]:
    return bank_of(data[0][:1024]), ProbeTask(data[1], bank_of(data[0][1024:]), kept=np.arange(400))


def train_and_probe(data: tuple[np.ndarray, ProbingSet]) -> list[Any]:
    """Hashes of weights and scores of probes."""
    shared: dict[str, Any] = {"d_sae": 32, "k": 4, "training_samples": 4096, "batch_size": 128}
    conditions = [Condition(name=name, architecture=name, **shared) for name in ("topk", "jumprelu")]
    rows, task = bank_and_task(data)
    saes = train_bank(members(conditions, [0, 1, 2]), rows)
    return [[sae.weights_sha256 for sae in saes], sae_scores(saes, [task], ProbingParams(ks=[1, 2]))]


def test_results_come_in_order_from_other_processes_that_compute_on_one_thread(dask: Path) -> None:
    factor, done = 3, list[tuple[int, int, str]]()

    def multiply(task: int) -> tuple[int, int, set[int]]:  # a closure, which plain pickle cannot send
        return (
            factor * task,
            os.getpid(),
            {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())},
        )

    found = run_tasks(multiply, range(9), "products", lambda *state: done.append(state))
    assert [result for result, _, _ in found] == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert os.getpid() not in {process for _, process, _ in found}
    assert {count for _, _, threads in found for count in threads} == {1}
    assert done[-9:] == [(i, 9, "products") for i in range(1, 10)]
    assert run_tasks(multiply, [], "products") == []
    assert workers() == WORKERS


def test_the_failing_task_is_named_with_its_error_once_all_others_are_done(dask: Path, tmp_path: Path) -> None:
    def write(task: str) -> None:
        if task == "the bad one":
            raise DataError("its rows are missing")
        (tmp_path / task).touch()

    with pytest.raises(
        DataError, match=r"the bad one: its rows are missing \(1 of 5 tasks failed, the others are done"
    ):
        run_tasks(write, ["the bad one", "a", "b", "c", "d"], "files")
    assert all((tmp_path / name).exists() for name in "abcd")


def test_an_error_of_another_kind_is_a_failed_step_that_names_it(dask: Path) -> None:
    with pytest.raises(StepError, match="0: ZeroDivisionError: integer division"):
        run_tasks(lambda task: 1 // task, [0, 1], "quotients")


@pytest.mark.timeout(600)
def test_one_thread_four_threads_and_four_workers_give_the_same_bits(
    dask: Path, data: tuple[np.ndarray, ProbingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_workers = train_and_probe(data)
    monkeypatch.setenv("HUSAI_EXECUTOR", "threads")
    for jobs in ("1", "4"):
        monkeypatch.setenv("HUSAI_JOBS", jobs)
        monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / jobs))
        assert train_and_probe(data) == by_workers


@pytest.mark.timeout(600)
def test_without_a_shared_folder_entries_travel_and_what_is_done_is_not_done_again(
    unshared: Path, data: tuple[np.ndarray, ProbingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = train_and_probe(data)
    keys = {path.name for path in (tmp_path / "cache" / "saes").iterdir()}
    assert len(keys) == 6
    assert {path.name for path in (unshared / "saes").iterdir()} == keys  # workers made them in their own folder
    assert {open_entry("saes", key).files["sae_weights.safetensors"] for key in keys} == set(found[0])
    shutil.rmtree(unshared)
    assert train_and_probe(data) == found
    assert not unshared.exists()  # no worker was asked
    monkeypatch.setenv("HUSAI_EXECUTOR", "threads")
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "other"))
    assert train_and_probe(data) == found


def made_entry(folder: Path) -> tuple[Entry, dict[str, bytes]]:
    os.environ["HUSAI_CACHE"] = str(folder)
    entry = cached("things", "husai_lib.files", {"a": 1}, lambda to: (to / "thing").write_bytes(b"12345678") and None)
    return entry, contents(entry)


def test_what_was_damaged_on_its_way_is_not_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_CACHE", "")
    entry, sent = made_entry(tmp_path / "there")
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "here"))
    with pytest.raises(IntegrityError, match=f"things/{entry.key}/thing was damaged on its way"):
        receive(entry.kind, entry.key, entry.files, sent | {"thing": b"12345679"})
    with pytest.raises(EvidenceError, match="missing"):
        open_entry(entry.kind, entry.key)
    receive(entry.kind, entry.key, entry.files, sent)
    assert open_entry(entry.kind, entry.key).files == entry.files


def home(**changes: Any) -> cluster.Home:
    same = cluster.Home("/nowhere", "mark", True, "cpu", cluster.library_hash(), cluster.versions())
    return replace(same, **changes)


def test_a_worker_with_other_code_packages_or_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")
    assert not cluster.shares(home())
    with pytest.raises(ParameterError, match="another version of husai_lib"):
        cluster.shares(home(code="other"))
    with pytest.raises(ParameterError, match=rf"it has torch {torch.__version__.replace('+', '.')}, unlike"):
        cluster.shares(home(versions=cluster.versions() | {"torch": "0.1"}))
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="torch finds no CUDA device"):
            cluster.shares(home(device="cuda"))


def test_a_worker_that_lost_the_shared_folder_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")
    with pytest.raises(EvidenceError, match="does not share /nowhere, as the others do"):
        cluster.work(home(), cluster._packed((len, "")), [])


def test_an_address_where_no_scheduler_answers_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_SCHEDULER", "tcp://127.0.0.1:9")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with pytest.raises(StepError, match=r"--scheduler tcp://127\.0\.0\.1:9: no dask scheduler answers"):
        cluster.connected()


def test_a_resource_that_no_worker_has_is_told(dask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_RESOURCES", "GPU=1")
    with pytest.raises(ParameterError, match="--resources GPU=1: no worker has it"):
        run_tasks(abs, [1], "things")


def test_a_lost_scheduler_ends_the_step_with_one_sentence(dask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cluster.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", processes=False, protocol="tcp://")
    monkeypatch.setenv("HUSAI_SCHEDULER", other.scheduler_address)
    monkeypatch.setattr(cluster, "_workers", lambda client: {"one that will come": {}})
    threading.Timer(1, other.close).start()
    with pytest.raises(
        StepError, match=rf"the dask scheduler {other.scheduler_address} was lost; 0 of 2 things are done"
    ):
        run_tasks(abs, [1, 2], "things")


def test_workers_of_this_machine_see_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    options = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}}
    with cluster._OneWorkerAGpu(**options) as of_gpus, cluster.Client(of_gpus) as client:
        of_gpus.scale(2)
        client.wait_for_workers(2)
        assert {*client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()} == {"3", "5"}
        assert {info["resources"]["GPU"] for info in cluster._workers(client).values()} == {1}


def test_members_of_one_shape_are_dealt_to_all_workers_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**12, 10**12))  # memory for all of them
    alike = members(
        [Condition(name="topk", architecture="topk", d_sae=32, k=4, training_samples=8, batch_size=8)], range(5)
    )
    assert stacks_of(alike, 16, 16, "cuda") == [[0, 1, 2, 3, 4]]
    assert stacks_of(alike, 16, 16, "cuda", workers=2) == [[0, 1, 2], [3, 4]]
    assert stacks_of(alike, 16, 16, "cuda", workers=8) == [[0], [1], [2], [3], [4]]
