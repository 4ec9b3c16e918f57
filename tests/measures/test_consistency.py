"""A sweep of the objective: by what checkpoints are chosen, with what SAEs are aligned, what random decoders give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_rows as made_up
from measures.test_evaluation import limits, probe
from small_saes import bank, cache
from synthetic_banks import dictionary, sparse_rows

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.consistency import CheckpointRow
from husai_lib.evidence.rows.measured import MemberRow, PairRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.intervals import pwmcc_interval
from husai_lib.measures.consistency import checkpoint_rows, random_pairs, sweep_rows
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.evaluation import group_rows, measure
from husai_lib.measures.matching import match, pairwise_pwmcc, random_decoders
from husai_lib.params.benchmarks import ContrastiveParams
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.saes.training import members, train_bank

assert cache  # the fixture that every test of this module uses

SEEDS = [0, 1, 2, 3]
FEATURES = dictionary(48, 32)
CONTRASTIVE = ContrastiveParams()
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu")


def parameters(**changes: Any) -> dict[str, Any]:
    """The section `consistency` of a cycle, as a record has it, and the others that rows are derived from."""
    shared = {"architecture": "topk", "k": 4, "training_samples": 2560, "batch_size": 128, "learning_rate": 3e-3}
    widths = changes.pop("widths", [64])
    conditions = [{"name": f"topk_{width}", "d_sae": width, "hyperparameters": {}} | shared for width in widths]
    given = {"conditions": conditions, "lambdas": [0.0, 10.0], "references": [10, 11], "seeds": SEEDS} | changes
    section = ConsistencyParams.model_validate(given).model_dump()
    return {"consistency": section, "probing": {"choose_k": "validation", "duplicates": "drop"}}


def trained_sweep(rows: Bank, given: dict[str, Any]) -> list[TrainedSae]:
    params = ConsistencyParams.model_validate(given["consistency"])
    return train_bank(members(params.swept(), params.seeds), rows)


@pytest.fixture(scope="module")
def banks(cache: Path) -> dict[str, Bank]:
    """Activations in each of their roles; those that tests read are there too."""
    drawn = np.random.default_rng(0)
    made = {name: bank(sparse_rows(FEATURES, 512, 3, seed).numpy()) for seed, name in
            enumerate(["training", "validation", "held_out"])}  # fmt: skip
    offsets = list(range(0, 81, 10))
    return made | {name: bank(drawn.normal(size=(80, 32)), offsets) for name in ("validation_stories", "stories")}


@pytest.fixture(scope="module")
def saes(banks: dict[str, Bank]) -> list[TrainedSae]:
    """Four seeds at lambda 0, and four at 10 with two references."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_JOBS", "1")
        patch.setenv("HUSAI_DEVICE", "cpu")
        return trained_sweep(banks["training"], parameters())


def probes_of(saes: Sequence[TrainedSae], test_auc: float = 0.7) -> list[ProbeRow]:
    """Probes on two data sets of 99 test rows each; validation AUCs differ, and those with duplicates are garbage."""
    found = []
    for i, one in enumerate(saes):
        of = (one.member.condition.name, one.member.seed)
        for s, name in enumerate("ab"):
            own = probe(*of, name, test_auc - 0.5).model_copy(update={"validation_auc": 0.5 + 0.02 * i + 0.1 * s})
            found += [own, own.model_copy(update={"duplicates": "keep", "validation_auc": 0.01})]
    return found


def checkpoints(
    saes: Sequence[TrainedSae], banks: dict[str, Bank], given: dict[str, Any] | None = None, **probes: float
) -> list[CheckpointRow]:
    tables = {"probes": probes_of(saes, **probes)}
    return checkpoint_rows(saes, banks, CONTRASTIVE, tables=tables, parameters=given or parameters())


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_has_the_validation_metrics_of_its_own_sae(saes: list[TrainedSae], banks: dict[str, Bank]) -> None:
    rows = checkpoints(saes, banks)
    assert [(row.condition, row.seed) for row in rows] == [
        (f"topk_64_lambda_{weight}", seed) for weight in (0, 10) for seed in SEEDS
    ]
    stories = contrastive_scores(saes, banks["validation_stories"], CONTRASTIVE)
    for i, (row, one, story) in enumerate(zip(rows, saes, stories, strict=True)):
        assert row.ev == measure(one.sae, banks["validation"]).explained_variance
        assert row.ev != measure(one.sae, banks["held_out"]).explained_variance
        assert row.cebench == story.interpretability
        assert row.saebench == pytest.approx(0.55 + 0.02 * i)  # of sets at 0.5 and 0.6, each of 99 test rows


def test_nothing_that_a_gate_reads_decides_a_checkpoint(saes: list[TrainedSae], banks: dict[str, Bank]) -> None:
    expected = checkpoints(saes, banks)
    garbage = bank(np.random.default_rng(8).normal(size=(80, 32)) * 7, list(range(0, 81, 10)))
    assert checkpoints(saes, banks | {"held_out": garbage, "stories": garbage}) == expected
    assert checkpoints(saes, banks, test_auc=0.2) == expected
    only = {name: banks[name] for name in ("training", "validation", "validation_stories")}
    assert checkpoints(saes, only) == expected
    assert checkpoints(saes, banks | {"validation": garbage}) != expected
    assert checkpoints(saes, banks | {"validation_stories": garbage}) != expected


def test_the_form_of_cebench_is_that_of_the_parameters(saes: list[TrainedSae], banks: dict[str, Bank]) -> None:
    released = ContrastiveParams(independence="as_released")
    tables = {"probes": probes_of(saes)}
    rows = checkpoint_rows(saes, banks, released, tables=tables, parameters=parameters())
    stories = contrastive_scores(saes, banks["validation_stories"], released)
    assert [row.cebench for row in rows] == [story.interpretability_as_released for story in stories]


def checkpoint(seed: int, *metrics: float | None, condition: str = "a") -> CheckpointRow:
    names = ("saebench", "cebench", "alignment", "ev")
    return CheckpointRow(condition=condition, seed=seed, external_score=0.0, **dict(zip(names, metrics, strict=True)))


def scores(rows: list[CheckpointRow], weights: dict[str, float]) -> list[float]:
    """The external score of each row."""
    probes = [
        probe(row.condition, row.seed, "a", 0.0).model_copy(update={"validation_auc": row.saebench}) for row in rows
    ]
    tables = {("consistency", "checkpoints"): rows, ("consistency", "probes"): probes}
    run = RunTables(tables, {"consistency": {"external_score": weights}})
    return [row.derived("consistency", run)["external_score"] for row in rows]


def test_the_external_score_by_hand() -> None:
    weights = {"saebench": 0.70, "cebench": 0.20, "alignment": 0.05, "ev": 0.05}
    rows = [
        checkpoint(0, 0.60, 2.0, 0.5, 0.70),
        checkpoint(1, 0.80, 1.0, 0.9, 0.70),
        checkpoint(2, 0.65, 5.0, 0.6, 0.70),
        checkpoint(0, 0.99, 9.0, 0.1, 0.99, condition="b"),  # another group does not count, and one row has no spread
    ]
    # saebench (0, 1, 1/4), cebench (1/4, 0, 1), alignment (0, 1, 1/4), and ev is the same for all
    expected = [0.2 / 4, 0.70 + 0.05, 0.70 / 4 + 0.2 + 0.05 / 4, 0.0]
    assert scores(rows, weights) == pytest.approx(expected)
    assert scores(rows, weights | {"saebench": 0.0, "alignment": 0.0}) == pytest.approx([0.05, 0.0, 0.2, 0.0])


def test_without_a_reference_alignment_has_no_part_in_the_score() -> None:
    rows = [checkpoint(0, 0.6, 2.0, None, 0.7), checkpoint(1, 0.8, 1.0, None, 0.8)]
    weights = {"saebench": 0.5, "cebench": 0.2, "alignment": 0.2, "ev": 0.1}
    assert scores(rows, weights) == pytest.approx([0.2, 0.6])


def test_scores_of_measured_checkpoints_are_relative_to_their_own_group(
    saes: list[TrainedSae], banks: dict[str, Bank]
) -> None:
    weights = {"saebench": 1.0, "cebench": 0.0, "alignment": 0.0, "ev": 0.0}
    rows = checkpoints(saes, banks, parameters(external_score=weights))
    # validation AUCs of a group are equally spaced, so that the scores are too
    assert [row.external_score for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1] * 2)


# --- alignment -----------------------------------------------------------------------------------


def test_alignment_is_with_the_own_frozen_reference(saes: list[TrainedSae], banks: dict[str, Bank]) -> None:
    given = parameters()
    plain = ConsistencyParams.model_validate(given["consistency"]).swept()[:1]
    references = train_bank(members(plain, [10, 11]), banks["training"])
    rows = checkpoints(saes, banks)
    assert [row.alignment for row in rows[:4]] == [None] * 4
    for i, (row, one) in enumerate(zip(rows[4:], saes[4:], strict=True)):
        own, other = (match(one.sae.W_dec, references[j].sae.W_dec).cosines.mean() for j in (i % 2, 1 - i % 2))
        assert row.alignment == pytest.approx(own)
        assert own > other + 0.05


def test_under_mutual_alignment_is_with_the_other_seeds_of_the_bank(banks: dict[str, Bank]) -> None:
    given = parameters(references=[], reference="mutual", seeds=[0, 1, 2, 3, 4])
    found = trained_sweep(banks["training"], given)
    rows = checkpoints(found, banks, given)
    decoders = [one.sae.W_dec for one in found[5:]]
    for i, others in enumerate([[2, 4], [3], [0, 4], [1], [0, 2]]):
        expected = np.mean([match(decoders[i], decoders[j]).cosines.mean() for j in others])
        assert rows[5 + i].alignment == pytest.approx(expected)


# --- random decoders, and the table of the sweep -------------------------------------------------


def test_random_pairs_are_those_of_random_decoders_of_every_width_once(banks: dict[str, Bank]) -> None:
    given = parameters(widths=[64, 32])
    found = random_pairs(trained_sweep(banks["training"], given), SEEDS)
    names = [f"random_decoder_{width}" for width in (64, 32)]
    assert [(pair.of, pair.seed_a, pair.seed_b) for pair in found] == [
        (name, a, b) for name in names for a in SEEDS for b in SEEDS if a < b
    ]
    for width, name in zip((64, 32), names, strict=True):
        expected = pairwise_pwmcc(random_decoders((width, 32), SEEDS))
        own = {(pair.seed_a, pair.seed_b): pair.pwmcc for pair in found if pair.of == name}
        assert own == {pair: pytest.approx(expected[pair]) for pair in own}


def member_rows_of(saes: Sequence[TrainedSae], rows: Bank) -> list[MemberRow]:
    """Their rows, with deltas made up: the SAEBench delta is -0.1 and the CE-Bench delta 0.5."""
    return [
        made_up.member(
            one.member.condition.name, one.member.seed, architecture="topk", reference=one.member.reference, k=4,
            explained_variance=measure(one.sae, rows).explained_variance, saebench_delta=-0.1, cebench_delta=0.5,
        )
        for one in saes
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tables(saes: list[TrainedSae], banks: dict[str, Bank]) -> dict[str, list[Any]]:
    of = [(one.member.condition.name, one.member.seed) for one in saes]
    rows, ceilings = member_rows_of(saes, banks["held_out"]), [limits(*one) for one in of]
    probes = [probe(*one, name, -0.1, form) for one in of for name in "ab" for form in ("drop", "keep")]
    groups, pairs = group_rows(saes, saes, rows, probes, ceilings, held_out=banks["held_out"], step="consistency")
    pairs += random_pairs(saes, SEEDS)
    found = checkpoint_rows(saes, banks, CONTRASTIVE, tables={"probes": probes_of(saes)}, parameters=parameters())
    return {"members": rows, "groups": groups, "pairs": pairs, "probes": probes, "checkpoints": found}


def pwmcc(pairs: Sequence[PairRow], of: str, *chosen: tuple[int, int]) -> float:
    return float(np.mean([pair.pwmcc for pair in pairs if pair.of == of and (pair.seed_a, pair.seed_b) in chosen]))


def test_every_weight_is_a_row_whose_numbers_are_those_of_the_other_tables(
    saes: list[TrainedSae], tables: dict[str, list[Any]]
) -> None:
    plain, aligned = sweep_rows(tables, parameters())
    assert [(row.condition, row.base, row.weight, row.n_seeds) for row in (plain, aligned)] == [
        ("topk_64_lambda_0", "topk_64_lambda_0", 0.0, 4), ("topk_64_lambda_10", "topk_64_lambda_0", 10.0, 4),
    ]  # fmt: skip
    pairs = tables["pairs"]
    every = [(a, b) for a in SEEDS for b in SEEDS if a < b]
    within, across = [(0, 2), (1, 3)], [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert (plain.pwmcc, plain.pwmcc_within) == (pytest.approx(pwmcc(pairs, plain.condition, *every)), None)
    assert aligned.pwmcc == pytest.approx(pwmcc(pairs, aligned.condition, *across))
    assert aligned.pwmcc_within == pytest.approx(pwmcc(pairs, aligned.condition, *within))
    assert aligned.pwmcc_within > aligned.pwmcc  # type: ignore[operator]
    assert (aligned.pwmcc_low, aligned.delta_lcb, aligned.gate_delta_lcb) == (None, None, "missing")  # two references
    random = pwmcc_interval(pairwise_pwmcc(random_decoders((64, 32), SEEDS)))
    assert (plain.random, plain.random_high) == pytest.approx((random.mean, random.high))
    assert plain.delta_pwmcc == pytest.approx(plain.pwmcc - random.mean)  # type: ignore[operator]
    assert plain.delta_lcb == pytest.approx(plain.pwmcc_low - random.high)  # type: ignore[operator]
    evs = np.array([row.explained_variance for row in tables["members"]]).reshape(2, 4).mean(1)
    assert (plain.explained_variance, aligned.explained_variance) == pytest.approx(tuple(evs))
    assert (plain.ev_drop, aligned.ev_drop) == pytest.approx((0.0, evs[0] - evs[1]))
    assert (aligned.external_delta, aligned.cebench_delta) == pytest.approx((-0.1, 0.5))
    assert (aligned.gate_external, aligned.gate_cebench, aligned.accepted) == ("fail", "", False)
    alignments = [row.alignment for row in tables["checkpoints"][4:]]
    assert (plain.alignment, aligned.alignment) == (None, pytest.approx(np.mean(alignments)))


def test_a_weight_stands_for_the_seed_with_the_best_external_score(tables: dict[str, list[Any]]) -> None:
    changed = [
        row.model_copy(update={"external_score": float(row.seed == best)})
        for row, best in zip(tables["checkpoints"], [2] * 4 + [1] * 4, strict=True)
    ]
    found = sweep_rows(tables | {"checkpoints": changed}, parameters())
    assert [row.checkpoint_seed for row in found] == [2, 1]


def test_with_one_reference_no_seeds_are_unrelated_and_none_are_accepted(banks: dict[str, Bank]) -> None:
    given = parameters(references=[], reference=10)
    found = trained_sweep(banks["training"], given)
    of = [(one.member.condition.name, one.member.seed) for one in found]
    probes = [probe(*one, "a", 0.3, form) for one in of for form in ("drop", "keep")]
    rows = member_rows_of(found, banks["held_out"])
    groups, pairs = group_rows(
        found, found, rows, probes, [limits(*one) for one in of], held_out=banks["held_out"], step="consistency"
    )
    tables = {"members": rows, "groups": groups, "pairs": pairs + random_pairs(found, SEEDS), "probes": probes}
    _, aligned = sweep_rows(tables | {"checkpoints": checkpoints(found, banks, given)}, given)
    every = [(a, b) for a in SEEDS for b in SEEDS if a < b]
    assert (aligned.pwmcc, aligned.delta_pwmcc, aligned.gate_delta_pwmcc, aligned.accepted) == (
        None, None, "missing", False
    )  # fmt: skip
    assert aligned.pwmcc_within == pytest.approx(pwmcc(pairs, aligned.condition, *every))
    assert aligned.note == "all seeds have one reference, so none of them are unrelated"
