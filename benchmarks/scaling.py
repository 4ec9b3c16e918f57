"""Time the same tasks in 1, 2 and 4 worker processes: tasks that wait, and members that are trained.

Tasks that wait show what sending them costs: n workers should need 1/n of the time of one, on any machine. Training
shows what the machine allows: n workers cannot gain where others, or each other's memory traffic, use its cores.
In every round each number of workers takes its turn, in alternating order. The efficiency of n workers is the median
time of one worker by n times theirs. Workers have started, and have imported what they need, before the first round.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from training import Work, made_up_bank

from husai_lib.saes.trained import Member
from husai_lib.saes.training import train_bank
from husai_lib.tasks import cluster, run_tasks

Seconds = dict[int, list[float]]
"""Seconds of each round, by number of workers."""


def clusters(counts: Sequence[int]) -> dict[int, str]:
    """Addresses of clusters of this machine, by number of workers; every worker has trained a member."""
    addresses = {}
    for count in counts:
        os.environ["HUSAI_JOBS"] = str(count)
        cluster.start_local.cache_clear()
        addresses[count] = os.environ["HUSAI_SCHEDULER"] = cluster.start_local()
        cluster.connected().wait_for_workers(count)
    return addresses


def race(addresses: dict[int, str], rounds: int, work: Callable[[int], object]) -> Seconds:
    """Seconds of `work(number of the turn)`, once a round for each cluster."""
    seconds: Seconds = {count: [] for count in addresses}
    for number in range(rounds):
        for count in addresses if number % 2 else reversed(addresses):
            os.environ["HUSAI_SCHEDULER"] = addresses[count]
            began = time.perf_counter()
            work(number * len(addresses) + list(addresses).index(count))
            seconds[count].append(time.perf_counter() - began)
    return seconds


def efficiency(seconds: Seconds, count: int) -> float:
    return statistics.median(seconds[1]) / (count * statistics.median(seconds[count]))


def table_of(title: str, seconds: Seconds) -> Table:
    table = Table(title=title)
    for column in ("workers", "seconds", "over the rounds", "times as fast as one", "efficiency"):
        table.add_column(column)
    for count, own in seconds.items():
        share = efficiency(seconds, count)
        spread = f"{min(own):.2f} to {max(own):.2f}"
        table.add_row(f"{count}", f"{statistics.median(own):.2f}", spread, f"{share * count:.2f}", f"{share:.2f}")
    return table


Count = typer.Option(min=1)


def main(  # noqa: PLR0917 -- one an option
    tasks: Annotated[int, typer.Option(min=4, help="Tasks that wait.")] = 16,
    wait: Annotated[float, typer.Option(min=0.001, help="Seconds that each waits.")] = 0.5,
    members: Annotated[int, typer.Option(min=0, help="Members to train; 0 leaves training out.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each.")] = 16,
    d_in: Annotated[int, Count] = 576,
    d_sae: Annotated[int, Count] = 1024,
    rounds: Annotated[int, Count] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Time tasks in 1, 2 and 4 worker processes of this machine."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HUSAI_CACHE": folder, "HUSAI_DEVICE": "cpu", "HUSAI_EXECUTOR": "dask"}
        addresses = clusters((1, 2, 4))
        work = Work(members, d_in, d_sae, 32, 1024, 20_000, "cpu")
        bank = made_up_bank(work)
        trained = work.members(steps)

        def train(turn: int) -> None:  # other seeds each time, as members in the cache are not trained again
            train_bank([Member(member.condition, 1000 * (turn + 1) + member.seed) for member in trained], bank)

        def waited(_: int) -> None:
            run_tasks(lambda _: time.sleep(wait), range(tasks), "tasks")

        short = [replace(member, seed=10**6 + i) for i, member in enumerate(work.members(1) * 4)]
        for address in addresses.values():
            os.environ["HUSAI_SCHEDULER"] = address
            waited(0)
            if short:
                train_bank(short, bank)
                short = [replace(member, seed=member.seed + 1000) for member in short]
        console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first round")
        waiting = race(addresses, rounds, waited)
        console.print(table_of(f"{tasks} tasks that wait {wait} s each, {rounds} rounds", waiting))
        if members:
            training = race({count: addresses[count] for count in (1, 2)}, rounds, train)
            console.print(table_of(f"{members} TopK SAEs, d_in {d_in}, d_sae {d_sae}, {steps} steps", training))
        for local in cluster._STARTED:
            local.close()
    if as_json:
        print(json.dumps({f"efficiency_{count}": efficiency(waiting, count) for count in (2, 4)}))


if __name__ == "__main__":
    typer.run(main)
