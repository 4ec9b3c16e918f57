"""A stack is trained as its members alone are, resumes where it was killed, and ends at the requested L0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_banks import bank_of, dictionary, sparse_rows
from torch import Tensor

from husai_lib.activations import banks
from husai_lib.activations.banks import Bank
from husai_lib.errors import DataError, EvidenceError, ParameterError
from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes import stack, training
from husai_lib.saes.architectures.base import Loss
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack, stacks_of
from husai_lib.saes.trained import Member
from husai_lib.saes.training import train_bank

D_IN, D_SAE, K = 32, 64, 4
FEATURES = dictionary(48, D_IN)
SHARED: dict[str, Any] = {
    "d_sae": D_SAE,
    "k": K,
    "training_samples": 128 * 40,
    "batch_size": 128,
    "learning_rate": 3e-3,
}
SAES = [name for name in ARCHITECTURES if name != "topk_transcoder"]
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu")


@pytest.fixture(scope="module")
def rows() -> Bank:
    return bank_of(sparse_rows(FEATURES, 2048, active=3, seed=1))


def condition(architecture: str = "topk", **changes: Any) -> Condition:
    return Condition(**{"name": architecture, "architecture": architecture, "hyperparameters": {}} | SHARED | changes)


def weights(sae: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# --- killed and resumed --------------------------------------------------------------------------


class Killed(Exception):
    """What ends a training in these tests."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """A checkpoint after every step, and a training that ends before `step`."""
    whole = Stack.step

    def ends(self: Stack, x: Tensor, target: Tensor) -> Loss:
        if self.done == step:
            raise Killed
        return whole(self, x, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Stack, "step", ends)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("architecture", SAES)
@pytest.mark.parametrize("at", [1, 33])  # in the first and in a later epoch; the step size falls from step 32 on
def test_a_killed_training_resumes_from_its_checkpoint_to_the_same_weights(
    rows: Bank, tmp_path: Path, architecture: str, at: int
) -> None:
    member, data = Member(condition(architecture, match_l0="k"), 3), Data.of(rows)
    [whole] = Stack([member], data, "cpu").train()
    with killed_at(at):
        Stack([member], data, "cpu").train(tmp_path / "checkpoint")
    resumed = Stack([member], data, "cpu")
    [again] = resumed.train(tmp_path / "checkpoint")
    assert_same(weights(again), weights(whole))
    assert resumed.done == 40


def test_a_stack_of_several_members_resumes_from_its_checkpoint(rows: Bank, tmp_path: Path) -> None:
    members, data = [Member(condition("batchtopk"), seed) for seed in (0, 1)], Data.of(rows)
    whole = [weights(sae) for sae in Stack(members, data, "cpu").train()]
    with killed_at(17):
        Stack(members, data, "cpu").train(tmp_path / "checkpoint")
    for sae, expected in zip(Stack(members, data, "cpu").train(tmp_path / "checkpoint"), whole, strict=True):
        assert_same(weights(sae), expected)


def test_a_resumed_training_does_only_the_remaining_steps(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Member(condition(), 0)
    with killed_at(30):
        train_bank([member], rows)
    [checkpoint] = (fresh_cache / "checkpoints").iterdir()
    assert not list(fresh_cache.glob("saes/*/cfg.json"))
    steps: list[int] = []
    whole = Stack.step

    def noted(self: Stack, x: Tensor, target: Tensor) -> Loss:
        steps.append(self.done)
        return whole(self, x, target)

    monkeypatch.setattr(Stack, "step", noted)
    [resumed] = train_bank([member], rows)
    assert steps == list(range(30, 40))
    assert not checkpoint.exists()
    monkeypatch.setenv("HUSAI_CACHE", str(fresh_cache / "another"))
    assert train_bank([member], rows)[0].weights_sha256 == resumed.weights_sha256


def test_a_damaged_checkpoint_is_ignored(rows: Bank, tmp_path: Path) -> None:
    path, member, data = tmp_path / "checkpoint", Member(condition(), 0), Data.of(rows)
    path.write_bytes(b"half a fi")
    [again] = Stack([member], data, "cpu").train(path)
    assert_same(weights(again), weights(Stack([member], data, "cpu").train()[0]))


def test_a_checkpoint_that_cannot_be_written_is_reported_in_one_sentence(rows: Bank, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    one = Stack([Member(condition(), 0)], Data.of(rows), "cpu")
    one.step(*next(one.batches()))
    with pytest.raises(EvidenceError, match="checkpoints"):
        one.save(tmp_path / "checkpoints" / "checkpoint")


def test_checkpoints_of_other_members_or_rows_are_never_read(rows: Bank, fresh_cache: Path) -> None:
    other = bank_of(np.array(rows.rows[:1024]))
    first, other_seed = Member(condition(), 0), Member(condition(), 1)
    other_rate = Member(condition(learning_rate=1e-3), 0)
    for member, bank in [(first, rows), (other_seed, rows), (first, other), (other_rate, rows)]:
        with killed_at(5):
            train_bank([member], bank)
    assert len(list((fresh_cache / "checkpoints").iterdir())) == 4


def test_a_process_killed_in_the_middle_of_a_bank_leaves_it_to_the_next_to_finish_with_the_same_weights(
    tmp_path: Path,
) -> None:
    script = tmp_path / "bank.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
        from test_stack import *
        stack.CHECKPOINT_SECONDS = 0.01
        data = bank_of(sparse_rows(FEATURES, 2048, active=3, seed=1))
        bank = [Member(condition("topk", training_samples=128 * 600), seed) for seed in (0, 1)]
        for trained in train_bank(bank, data, progress=lambda *state: print(*state, flush=True)):
            print(trained.weights_sha256)
        """)
    )

    def run(cache: str) -> subprocess.Popen[str]:
        env = os.environ | {"HUSAI_CACHE": str(tmp_path / cache)}
        return subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True)

    undisturbed = run("undisturbed").communicate()[0].splitlines()
    process = run("killed")
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["0 2 members trained\n", "1 2 members trained\n"]
    checkpoints = tmp_path / "killed" / "checkpoints"
    while not list(checkpoints.glob("*.safetensors")):
        assert process.poll() is None, "ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert run("killed").communicate()[0].splitlines() == undisturbed
    assert not list(checkpoints.glob("*.safetensors"))  # a write that was killed may leave a file that nobody reads


# --- several members as one computation ----------------------------------------------------------


@pytest.fixture
def device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 40 MB free, as far as the sizes of stacks are concerned."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40_000_000, 80_000_000))


def test_stacks_hold_members_of_one_shape_as_many_as_memory_holds(device_memory: None) -> None:
    alike = [Member(condition("standard", learning_rate=rate, hyperparameters={"l1_coefficient": l1}), seed)
             for rate, l1, seed in [(1e-3, 1.0, 0), (3e-3, 2.0, 0), (1e-3, 1.0, 1)]]  # fmt: skip
    wide = [Member(condition("standard", d_sae=128), 0), Member(condition("standard", d_sae=128), 1)]
    other = [Member(condition("topk"), 0), Member(condition("topk", k=5), 0)]
    mixed = [alike[0], wide[0], other[0], alike[1], other[1], alike[2], wide[1]]
    assert stacks_of(mixed, D_IN, D_IN, "cuda") == [[0, 3, 5], [1, 6], [2], [4]]
    many = [Member(condition(d_sae=4096, batch_size=128), seed) for seed in range(5)]
    # a member: 4 x 262,144 numbers of weights, 128 x 49,664 of a step, 4 bytes each: 29.6 MB of the 28 MB allowed
    assert stacks_of(many, D_IN, D_IN, "cuda") == [[0], [1], [2], [3], [4]]
    assert stacks_of(mixed, D_IN, D_IN, "cpu") == [[i] for i in range(7)]


def test_a_member_with_a_loss_left_out_is_of_another_shape(device_memory: None) -> None:
    pair = [Member(condition("topk", hyperparameters={"aux_loss_coefficient": weight}), 0) for weight in (0.0, 1.0)]
    assert stacks_of(pair, D_IN, D_IN, "cuda") == [[0], [1]]


@pytest.mark.parametrize("architecture", SAES)
def test_in_a_bank_of_stacks_a_member_ends_with_the_metrics_it_has_alone(
    rows: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    bank = [Member(condition(architecture), seed) for seed in (0, 1, 2)]
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "alone"))
    alone = [measure(trained.sae, rows) for trained in train_bank(bank, rows)]
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "stack"))
    monkeypatch.setattr(training, "stacks_of", lambda *_: [[2, 0], [1]])
    for trained, expected in zip(train_bank(bank, rows), alone, strict=True):
        found = measure(trained.sae, rows)
        assert found.explained_variance == pytest.approx(expected.explained_variance, abs=2e-4)
        assert found.l0 == pytest.approx(expected.l0, rel=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="not measured: torch finds no CUDA device")
@pytest.mark.parametrize("architecture", SAES)
def test_on_a_gpu_a_stack_ends_with_the_metrics_that_its_members_have_on_the_cpu(rows: Bank, architecture: str) -> None:
    members, data = [Member(condition(architecture, match_l0="k"), seed) for seed in (0, 1)], Data.of(rows)
    found = [
        measure(sae.export(data.scale_in, data.scale_out, {}), rows) for sae in Stack(members, data, "cuda").train()
    ]
    for member, on_gpu in zip(members, found, strict=True):
        [alone] = Stack([member], data, "cpu").train()
        on_cpu = measure(alone.export(data.scale_in, data.scale_out, {}), rows)
        assert on_gpu.explained_variance == pytest.approx(on_cpu.explained_variance, abs=5e-3)
        assert on_gpu.l0 == pytest.approx(on_cpu.l0, rel=0.02)


def test_only_the_members_of_a_stack_that_are_not_in_the_cache_are_trained(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = [Member(condition(), seed) for seed in (0, 1, 2)]
    [first] = train_bank(bank[1:2], rows)
    monkeypatch.setattr(training, "stacks_of", lambda *_: [[0, 1, 2]])
    trained: list[int] = []
    whole = Stack.train
    monkeypatch.setattr(
        Stack, "train", lambda self, path: trained.extend(m.seed for m in self.members) or whole(self, path)
    )
    assert train_bank(bank, rows)[1].weights_sha256 == first.weights_sha256
    assert trained == [0, 2]


def test_one_diverging_member_of_a_stack_is_named(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "stacks_of", lambda *_: [[0, 1]])
    bank = [Member(condition(), 0), Member(condition(learning_rate=1e30), 1)]
    with pytest.raises(DataError, match="training of topk at seed 1 diverged; lower its learning_rate"):
        train_bank(bank, rows)


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
def test_bfloat16_computes_nearly_the_same_and_keeps_float32_weights(rows: Bank, sparse: bool) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        data = Data.of(rows)
        one = Stack([Member(condition(precision=precision), 0)], data, "cpu", sparse=sparse)
        [sae] = one.train()
        assert {p.dtype for p in sae.parameters()} == {torch.float32}
        found[precision] = measure(sae.export(data.scale_in, data.scale_out, {}), rows).explained_variance
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.02)


def test_tf32_is_refused_where_there_is_none(rows: Bank) -> None:
    with pytest.raises(ParameterError, match="precision = 'tf32' needs a GPU; use float32"):
        Stack([Member(condition(precision="tf32"), 0)], Data.of(rows), "cpu")


# --- reading rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [1e9, 0])
def test_rows_are_read_from_the_file_in_the_order_of_the_index(
    rows: Bank, monkeypatch: pytest.MonkeyPatch, mapped: float
) -> None:
    monkeypatch.setattr(banks, "MAPPED_BYTES", mapped)
    index = np.array([5, 0, 2047, 5])
    assert torch.equal(rows.take(index), torch.from_numpy(np.array(rows.rows[index])))


# --- matched L0 ----------------------------------------------------------------------------------

TUNED = ["standard", "jumprelu", "gated"]


@pytest.mark.parametrize("architecture", TUNED)
@pytest.mark.parametrize("start", [0.05, 20.0])
def test_match_l0_brings_held_out_l0_within_a_tenth_of_k_from_any_coefficient(
    rows: Bank, architecture: str, start: float
) -> None:
    held_out, data = bank_of(sparse_rows(FEATURES, 2048, active=3, seed=2)), Data.of(rows)
    name = "l0_coefficient" if architecture == "jumprelu" else "l1_coefficient"
    own = {name: start} | ({"bandwidth": 1.0} if architecture == "jumprelu" else {})
    given = condition(architecture, match_l0="k", training_samples=128 * 300, hyperparameters=own)
    [tuned] = Stack([Member(given, 0)], data, "cpu").train()
    assert measure(tuned.export(data.scale_in, data.scale_out, {}), held_out).l0 == pytest.approx(K, rel=0.1)
    [plain] = Stack([Member(given.model_copy(update={"match_l0": None}), 0)], data, "cpu").train()
    assert abs(measure(plain.export(data.scale_in, data.scale_out, {}), held_out).l0 - K) > 0.1 * K


@pytest.mark.parametrize("architecture", TUNED)
def test_match_l0_with_as_many_active_latents_as_there_are_trains(rows: Bank, architecture: str) -> None:
    [sae] = Stack([Member(condition(architecture, k=D_SAE, match_l0="k"), 0)], Data.of(rows), "cpu").train()
    assert all(torch.isfinite(p).all() for p in sae.parameters())


def test_match_l0_tunes_every_member_of_a_stack_by_itself(rows: Bank) -> None:
    data = Data.of(rows)
    long = {"match_l0": "k", "training_samples": 128 * 300}
    bank = [Member(condition("standard", hyperparameters={"l1_coefficient": l1}, **long), 0) for l1 in (0.05, 20.0)]
    for sae in Stack(bank, data, "cpu").train():
        assert measure(sae.export(data.scale_in, data.scale_out, {}), rows).l0 == pytest.approx(K, rel=0.1)
