"""The consistency objective has the gradient of its formula, aligns members as asked, and survives a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_saes import decode, encode
from saes.test_stack import assert_same, killed_at, weights
from scipy.optimize import linear_sum_assignment
from synthetic_banks import bank_of, dictionary, sparse_rows
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from husai_lib.activations.banks import Bank
from husai_lib.errors import ParameterError
from husai_lib.measures.evaluation import measure
from husai_lib.measures.matching import match, pairwise_pwmcc
from husai_lib.params.conditions import CONSISTENT, Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.params.sections import check
from husai_lib.saes.data import Data
from husai_lib.saes.objective import Consistency
from husai_lib.saes.stack import Stack, stacks_of
from husai_lib.saes.trained import Member, TrainedSae
from husai_lib.saes.training import frozen_references, members, train_bank

D_IN, D_SAE, K, STEPS = 32, 64, 4, 40
FEATURES = dictionary(48, D_IN)
ROUTED = {"hyperparameters": {"num_experts": 4}}
SHARED: dict[str, Any] = {
    "d_sae": D_SAE, "k": K, "training_samples": 128 * STEPS, "batch_size": 128, "learning_rate": 3e-3,
}  # fmt: skip
FROZEN, MUTUAL = {"references": [10, 11]}, {"reference": "mutual"}
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu")


@pytest.fixture(scope="module")
def rows() -> Bank:
    return bank_of(sparse_rows(FEATURES, 2048, active=3, seed=1))


def condition(weight: float | None = 1.0, architecture: str = "topk", **changes: Any) -> Condition:
    """A condition with the objective at this weight, aligned with seed 10; other keys of the objective may be given."""
    own = {key: changes.pop(key) for key in ("reference", "references", "assignment_interval") if key in changes}
    aligned = own if {"reference", "references"} & own.keys() else own | {"reference": 10}
    consistency = None if weight is None else {"lambda": weight, **aligned}
    shared = {"name": architecture, "architecture": architecture, "hyperparameters": {}} | SHARED
    return Condition(**shared | changes, consistency=consistency)


def hashes(saes: Sequence[TrainedSae]) -> list[str]:
    return [trained.weights_sha256 for trained in saes]


def partners(own: Tensor, other: Tensor) -> Tensor:
    """The partner of each row in `other`, by scipy."""
    cosines = (normalize(own, dim=1) @ normalize(other, dim=1).T).abs()
    return torch.from_numpy(linear_sum_assignment(-cosines.double().numpy())[1])


def aligned(a: Tensor, b: Tensor) -> float:
    return float(match(a.detach(), b.detach()).cosines.mean())


# --- the gradient --------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_is_that_of_the_formula_for_every_member() -> None:
    lambdas, decoders, target = torch.tensor([0.0, 0.5, 3.0]), drawn(3, 12, 5), drawn(3, 40, 5, seed=1) * 2 + 1
    references = [drawn(12, 5, seed=2 + m) * 3 for m in range(3)]
    references[1][4] = 0.0  # a dead latent of the reference
    before = drawn(3, 12, 5, seed=9)
    objective = Consistency(lambdas, decoders, 4, references)
    objective.match(decoders)
    found = before.clone()
    objective.add_gradient(decoders, found, target)
    signs = set()
    for m in range(3):
        w = decoders[m].clone().requires_grad_()
        cosines = cosine_similarity(w, references[m][partners(decoders[m], references[m])])
        signs |= {int(sign) for sign in cosines.sign()}
        penalty = lambdas[m] * (1 - cosines.abs().mean())
        total_variance = (target[m] - target[m].mean(0)).square().sum(1).mean()  # NMSE times this is the squared error
        (total_variance * penalty).backward()  # type: ignore[no-untyped-call]
        assert w.grad is not None
        torch.testing.assert_close(found[m], before[m] + w.grad, rtol=1e-4, atol=1e-5)
    assert signs == {-1, 0, 1}
    assert torch.equal(found[0], before[0])  # lambda 0


def test_a_latent_without_a_direction_is_left_alone() -> None:
    decoders, reference = drawn(1, 6, 4), drawn(6, 4, seed=1)
    decoders[0, 2] = 0.0
    objective = Consistency(torch.tensor([2.0]), decoders, 4, [reference])
    objective.match(decoders)
    found = torch.zeros(1, 6, 4)
    objective.add_gradient(decoders, found, drawn(1, 8, 4, seed=2))
    assert torch.isfinite(found).all()
    assert (found[0].abs().sum(1) == 0).tolist() == [False, False, True, False, False, False]


def test_a_step_minimises_the_error_plus_the_penalty_in_units_of_the_variance(
    rows: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, given = drawn(D_SAE, D_IN, seed=5), condition(2.0, hyperparameters={"aux_loss_coefficient": 0.0})
    stack = Stack([Member(given, 0, 10)], Data.of(rows), "cpu", references=[reference])
    x, target = next(stack.batches())
    [sae] = stack.saes
    W_dec = sae.W_dec.detach().clone()
    error = (target[0] - decode(sae, encode(sae, x[0]))).square().sum(1).mean()
    cosines = cosine_similarity(sae.W_dec, reference[partners(W_dec, reference)])
    total_variance = (target[0] - target[0].mean(0)).square().sum(1).mean()
    [expected] = torch.autograd.grad(
        total_variance * (error / total_variance + 2.0 * (1 - cosines.abs().mean())), sae.W_dec
    )
    found = []
    monkeypatch.setattr(Stack, "_clip_gradients", lambda self: found.append(self.computed["W_dec"].grad.clone()))
    stack.step(x, target)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4)


def test_without_references_each_member_is_matched_with_the_next_as_it_is_now() -> None:
    decoders = drawn(3, 10, 6)
    objective = Consistency(torch.ones(3), decoders, 4)
    for _ in range(2):
        objective.match(decoders)
        for m in range(3):
            other = normalize(decoders[(m + 1) % 3], dim=1)
            torch.testing.assert_close(objective.matched[m], other[partners(decoders[m], other)])
        decoders = decoders + drawn(3, 10, 6, seed=7)


@pytest.mark.parametrize("interval", [1, 4, 7])
def test_partners_are_sought_at_the_first_of_every_so_many_steps(
    rows: Bank, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    at: list[int] = []
    stack = Stack([Member(condition(assignment_interval=interval), 0, 10)], Data.of(rows), "cpu",
                  references=[drawn(D_SAE, D_IN)])  # fmt: skip
    whole = Consistency.match
    monkeypatch.setattr(Consistency, "match", lambda self, given: at.append(stack.done) or whole(self, given))
    stack.train()
    assert at == list(range(0, STEPS, interval))


# --- frozen references ---------------------------------------------------------------------------


def test_seeds_are_dealt_to_the_references_in_turn_whatever_the_condition() -> None:
    conditions = [condition(None, name="plain"), condition(name="one"), condition(name="two", **FROZEN)]
    found = [(member.condition.name, member.seed, member.reference) for member in members(conditions, [5, 6, 7])]
    assert found == [
        ("plain", 5, None), ("plain", 6, None), ("plain", 7, None), ("one", 5, 10), ("one", 6, 10), ("one", 7, 10),
        ("two", 5, 10), ("two", 6, 11), ("two", 7, 10),
    ]  # fmt: skip
    units = [member.unit for member in members([condition(**FROZEN)], [5, 6, 7])]
    assert units[0] == units[2] != units[1]


def test_under_mutual_seeds_are_dealt_to_two_banks() -> None:
    found = members([condition(**MUTUAL)], [5, 6, 7, 8, 9])
    assert [member.bank for member in found] == [(5, 7, 9), (6, 8), (5, 7, 9), (6, 8), (5, 7, 9)]
    assert [member.unit for member in found] == [(True, 5), (True, 6), (True, 5), (True, 6), (True, 5)]


def test_a_reference_is_unrelated_to_a_plain_seed_of_the_same_number() -> None:
    [alone], [related] = members([condition(None)], [10]), members([condition()], [0])
    assert alone.unit != related.unit


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The seeds of every stack that is trained, as it happens."""
    found: list[list[int]] = []
    whole = Stack.train

    def noted(self: Stack, checkpoint: Path | None = None) -> Any:
        found.append([member.seed for member in self.members])
        return whole(self, checkpoint)

    monkeypatch.setattr(Stack, "train", noted)
    return found


def test_a_weight_of_zero_is_the_plain_sae_and_trained_once(
    rows: Bank, fresh_cache: Path, trainings: list[list[int]]
) -> None:
    [plain] = train_bank(members([condition(None)], [0]), rows)
    [zero] = train_bank(members([condition(0.0, name="lambda_0", **FROZEN)], [0]), rows)
    assert (zero.entry.key, zero.weights_sha256) == (plain.entry.key, plain.weights_sha256)
    assert (zero.member.reference, zero.member.bank) == (None, ())
    assert trainings == [[0]]


def test_a_reference_is_the_plain_sae_at_its_seed_trained_once_for_all_weights(
    rows: Bank, fresh_cache: Path, trainings: list[list[int]]
) -> None:
    sweep = members([condition(weight, name=f"l{i}") for i, weight in enumerate((0.5, 2.0))], [0, 1])
    train_bank(sweep, rows)
    assert trainings == [[10], [0], [1], [0], [1]]
    [plain] = train_bank(members([condition(None)], [10]), rows)
    assert len(trainings) == 5  # it is in the cache
    assert {one.entry.key for one in frozen_references(sweep, rows) if one} == {plain.entry.key}
    assert frozen_references(members([condition(None)], [0]), rows) == [None]


def test_the_objective_changes_the_weights_and_each_of_its_parameters_the_key(rows: Bank, fresh_cache: Path) -> None:
    # of so small a weight that partners still change; those of a large one stay what they were at first
    conditions = [
        condition(None), condition(0.01), condition(0.02), condition(0.01, reference=11),
        condition(0.01, assignment_interval=40), condition(0.01, **MUTUAL),
    ]  # fmt: skip
    saes = [train_bank([members([one], [0, 1, 2, 3])[0]], rows)[0] for one in conditions[:-1]]
    saes += train_bank(members(conditions[-1:], [0, 1, 2, 3]), rows)[:1]
    assert len({trained.entry.key for trained in saes}) == len(conditions)
    assert len(set(hashes(saes))) == len(conditions)


def test_decoders_come_nearer_to_the_reference_with_the_weight(rows: Bank) -> None:
    bank = members([condition(weight, name=f"l{i}") for i, weight in enumerate((0.01, 0.3, 10.0))], [0])
    reference, *_ = frozen_references(bank, rows)
    assert reference
    [plain] = train_bank([Member(condition(None), 0)], rows)
    found = [aligned(one.sae.W_dec, reference.sae.W_dec) for one in [plain, *train_bank(bank, rows)]]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.2


def test_only_the_own_reference_of_a_member_draws_it(rows: Bank) -> None:
    bank = members([condition(10.0, **FROZEN)], [0, 1])
    for i, trained in enumerate(train_bank(bank, rows)):
        near, far = (frozen_references(bank, rows)[j] for j in (i, 1 - i))
        assert near and far  # noqa: PT018 -- for mypy
        assert aligned(trained.sae.W_dec, near.sae.W_dec) > aligned(trained.sae.W_dec, far.sae.W_dec) + 0.1


def test_a_member_has_the_same_weights_alone_and_in_a_bank(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = members([condition(1.0, name="a", **FROZEN), condition(3.0, name="b", **FROZEN)], [0, 1, 2])
    together = train_bank(sweep, rows)
    monkeypatch.setenv("HUSAI_CACHE", str(fresh_cache / "another"))
    alone = [train_bank([member], rows)[0] for member in (sweep[4], sweep[2])]
    assert hashes(alone) == [together[4].weights_sha256, together[2].weights_sha256]


# --- mutual --------------------------------------------------------------------------------------


def test_the_seeds_of_a_bank_agree_with_each_other_and_not_with_the_other_bank(rows: Bank) -> None:
    seeds = [0, 1, 2, 3]
    plain = pairwise_pwmcc([one.sae.W_dec for one in train_bank(members([condition(None)], seeds), rows)])
    mutual = pairwise_pwmcc([one.sae.W_dec for one in train_bank(members([condition(10.0, **MUTUAL)], seeds), rows)])
    within, across = [(0, 2), (1, 3)], [(0, 1), (0, 3), (1, 2), (2, 3)]
    for pair in within:
        assert mutual[pair] > plain[pair] + 0.15
        assert mutual[pair] > max(mutual[other] for other in across)


def test_another_seed_in_the_bank_is_another_sae_at_every_seed_of_it(rows: Bank, fresh_cache: Path) -> None:
    first, other, second, _ = train_bank(members([condition(**MUTUAL)], [0, 1, 2, 3]), rows)
    again, same, *_ = train_bank(members([condition(**MUTUAL)], [0, 1, 7, 3]), rows)
    assert (again.entry.key, again.weights_sha256) not in {
        (one.entry.key, one.weights_sha256) for one in (first, second)
    }
    assert again.entry.key != first.entry.key
    assert again.weights_sha256 != first.weights_sha256
    assert same.entry.key == other.entry.key  # its bank is what it was


def test_a_bank_of_which_a_member_is_lost_is_trained_again_to_the_same_weights(
    rows: Bank, fresh_cache: Path, trainings: list[list[int]]
) -> None:
    bank = members([condition(**MUTUAL)], [0, 1, 2, 3])
    before = train_bank(bank, rows)
    expected, lost = hashes(before), before[2].entry.path
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    assert hashes(train_bank(bank, rows)) == expected
    assert trainings == [[0, 2], [1, 3], [0, 2]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_stack_holds_exactly_the_seeds_that_align_with_each_other(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))  # memory for less than one member
    sweep = [condition(weight, name=f"l{i}", **MUTUAL) for i, weight in enumerate((0.5, 2.0))]
    bank = members([condition(None), *sweep], [0, 1, 2, 3])
    found = stacks_of(bank, D_IN, D_IN, device)
    assert found == [[0], [1], [2], [3], [4, 6], [5, 7], [8, 10], [9, 11]]


def test_on_a_gpu_weights_of_one_interval_share_a_stack_and_plain_members_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    sweep = [condition(None), condition(0.5), condition(2.0, reference=11), condition(2.0, assignment_interval=8)]
    assert stacks_of(members(sweep, [0]), D_IN, D_IN, "cuda") == [[0], [1, 2], [3]]


# --- killed and resumed, several members as one computation --------------------------------------

REFERENCES = [drawn(D_SAE, D_IN, seed=50 + m) for m in range(2)]


@pytest.mark.parametrize("form", ["frozen", "frozen pair", "mutual"])
@pytest.mark.parametrize("at", [1, 18, 35])  # none is a step of matching, which are multiples of 4
def test_a_killed_training_resumes_to_the_same_weights(rows: Bank, tmp_path: Path, form: str, at: int) -> None:
    count = 1 if form == "frozen" else 2
    given = condition(0.05, **(MUTUAL if form == "mutual" else FROZEN))  # partners still change
    bank = [Member(given, seed, 10 + seed, (0, 1) if form == "mutual" else ()) for seed in range(count)]

    def stack() -> Stack:
        return Stack(bank, Data.of(rows), "cpu", references=[] if form == "mutual" else REFERENCES[:count])

    whole = [weights(sae) for sae in stack().train()]
    with killed_at(at):
        stack().train(tmp_path / "checkpoint")
    resumed = stack()
    for sae, expected in zip(resumed.train(tmp_path / "checkpoint"), whole, strict=True):
        assert_same(weights(sae), expected)
    assert resumed.done == STEPS


@pytest.mark.parametrize("form", [FROZEN, MUTUAL], ids=["frozen", "mutual"])
def test_a_killed_bank_resumes_to_the_same_weights(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    bank = members([condition(0.05, **form)], [0, 1, 2, 3])
    train_bank([Member(condition(None), seed) for seed in (10, 11)], rows)
    with killed_at(18):
        train_bank(bank, rows)
    assert len(list((fresh_cache / "checkpoints").iterdir())) == 1
    resumed = hashes(train_bank(bank, rows))
    assert not list((fresh_cache / "checkpoints").iterdir())
    monkeypatch.setenv("HUSAI_CACHE", str(fresh_cache / "another"))
    assert hashes(train_bank(bank, rows)) == resumed


@pytest.mark.parametrize("architecture", CONSISTENT)
def test_members_of_a_stack_are_trained_as_alone(rows: Bank, architecture: str) -> None:
    own = ROUTED if architecture == "routed_topk" else {}
    lambdas = (0.5, 4.0)
    bank = [Member(condition(weight, architecture, **own), m, 10) for m, weight in enumerate(lambdas)]
    data = Data.of(rows)
    stack = Stack(bank, data, "cpu", references=REFERENCES).train()
    for m, together in enumerate(stack):
        for sparse in (True, False):
            [alone] = Stack([bank[m]], data, "cpu", sparse=sparse, references=REFERENCES[m : m + 1]).train()
            assert aligned(together.W_dec, REFERENCES[m]) == pytest.approx(
                aligned(alone.W_dec, REFERENCES[m]), abs=2e-3
            )
            found, expected = (
                measure(sae.export(data.scale_in, data.scale_out, {}), rows) for sae in (together, alone)
            )
            assert found.explained_variance == pytest.approx(expected.explained_variance, abs=1e-3)
            assert found.l0 == pytest.approx(expected.l0, rel=5e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="not measured: torch finds no CUDA device")
@pytest.mark.parametrize("form", ["frozen", "mutual"])
def test_on_a_gpu_a_stack_ends_with_the_metrics_that_it_has_on_the_cpu(rows: Bank, form: str) -> None:
    given, data = condition(3.0, **(MUTUAL if form == "mutual" else FROZEN)), Data.of(rows)
    bank = [Member(given, seed, 10 + seed, (0, 1) if form == "mutual" else ()) for seed in range(2)]
    found = {}
    for device in ("cpu", "cuda"):
        saes = Stack(bank, data, device, references=[] if form == "mutual" else REFERENCES).train()
        others = [saes[1].W_dec, saes[0].W_dec] if form == "mutual" else REFERENCES
        found[device] = [
            value
            for sae, other in zip(saes, others, strict=True)
            for value in (
                aligned(sae.W_dec.cpu(), other.cpu()),
                measure(sae.export(data.scale_in, data.scale_out, {}), rows).explained_variance,
            )
        ]
    assert found["cuda"] == pytest.approx(found["cpu"], abs=5e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="not measured: torch finds no CUDA device")
def test_on_a_gpu_a_killed_stack_resumes(rows: Bank, tmp_path: Path) -> None:
    bank, data = [Member(condition(3.0, **FROZEN), seed, 10 + seed) for seed in range(2)], Data.of(rows)
    whole = [weights(sae) for sae in Stack(bank, data, "cuda", references=REFERENCES).train()]
    with killed_at(18):
        Stack(bank, data, "cuda", references=REFERENCES).train(tmp_path / "checkpoint")
    again = Stack(bank, data, "cuda", references=REFERENCES).train(tmp_path / "checkpoint")
    for sae, expected in zip(again, whole, strict=True):
        for name, tensor in weights(sae).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


# --- architectures -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONSISTENT)
def test_every_architecture_that_may_have_the_objective_is_aligned_by_it(rows: Bank, architecture: str) -> None:
    own = ROUTED if architecture == "routed_topk" else {}
    bank = members([condition(10.0, architecture, **own)], [0])
    [reference] = frozen_references(bank, rows)
    assert reference
    [plain] = train_bank([Member(condition(None, architecture, **own), 0)], rows)
    [trained] = train_bank(bank, rows)
    assert reference.member.condition.architecture == architecture
    gained = aligned(trained.sae.W_dec, reference.sae.W_dec) - aligned(plain.sae.W_dec, reference.sae.W_dec)
    assert gained > 0.1


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in CONSISTENT])
def test_other_architectures_are_refused(architecture: str) -> None:
    given = SHARED | {"architecture": architecture, "consistency": {"lambda": 1.0, "reference": 10}}
    with pytest.raises(ParameterError, match=f"p.yaml: consistency: {architecture} has no such objective; use topk,"):
        check(Condition, given, "p.yaml")


def test_a_matched_l0_is_reached_beside_the_objective(rows: Bank) -> None:
    held_out = bank_of(sparse_rows(FEATURES, 2048, active=3, seed=2))
    given = condition(1.0, "standard", match_l0="k", training_samples=128 * 300)
    [trained] = train_bank(members([given], [0]), rows)
    assert measure(trained.sae, held_out).l0 == pytest.approx(K, rel=0.1)
    [reference] = frozen_references(members([given], [0]), rows)
    [plain] = train_bank([Member(given.model_copy(update={"consistency": None}), 0)], rows)
    assert reference
    assert aligned(trained.sae.W_dec, reference.sae.W_dec) > aligned(plain.sae.W_dec, reference.sae.W_dec) + 0.05
