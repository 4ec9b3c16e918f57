"""Measurements that are falsified with all that follows from them: no audit objects, and a reproduction finds each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forging import Change, change_record, copied, derive_again, fast_audits, smoke_copy

from husai_lib.cycle.reproduce import Comparison, Value, compare
from husai_lib.evidence.runs import Run
from husai_lib.report.audit import audit_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        fast_audits(patch)
        yield smoke_copy(tmp_path_factory.mktemp("reproduced"))


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be falsified."""
    return copied(made, tmp_path)


def row(table: str, column: str, by: float, **where: Any) -> Change:
    """Move a number of the first row that has these values."""

    def change(record: dict[str, Any]) -> None:
        found = next(row for row in record["tables"][table] if all(row[name] == value for name, value in where.items()))
        found[column] += by

    return change


def update(table: str, **columns: Any) -> Change:
    return lambda record: record["tables"][table][0].update(columns)


TOPK = {"condition": "topk", "seed": 1}
MEASURED: dict[str, tuple[str, Change, str]] = {
    "an AUC raised": ("frontier", row("probes", "test_auc", 0.001, **TOPK), "frontier.probes.6.test_auc"),
    "an AUC lowered": ("baselines", row("probes", "test_auc", -0.001, seed=1), "baselines.probes.6.test_auc"),
    "a validation AUC": ("frontier", row("probes", "validation_auc", 0.01, **TOPK), "frontier.probes.6.validation_auc"),
    "latents of a probe": ("frontier", update("probes", best_k=2, latents="1 2"), "frontier.probes.0.latents"),
    "a best k": ("frontier", update("probes", best_k=1, latents="3"), "frontier.probes.0.best_k"),
    "a CE-Bench score": ("frontier", row("members", "cebench_interpretability", 0.01, **TOPK),
                         "frontier.members.1.cebench_interpretability"),
    "an explained variance": ("frontier", row("members", "explained_variance", 0.001, **TOPK),
                              "frontier.members.1.explained_variance"),
    "the Gaussian null": ("frontier", row("groups", "null_gaussian", -0.05), "frontier.groups.0.null_gaussian"),
    "pairs of a condition": ("frontier", row("pairs", "pwmcc", 0.01, of="topk"), "frontier.groups.0.pwmcc"),
    "pairs of the transcoder": ("stress", row("pairs", "pwmcc", -0.01, of="transcoder"), "stress.controls.3.delta"),
    "pairs of the random model": ("stress", row("pairs", "pwmcc", -0.1, of="random_model_1"), "gate.gates.0.value"),
    "an AUC under shift": ("stress", row("ood", "shifted_auc", 0.01), "stress.controls.5.delta"),
    "a score of the width study": ("baselines", row("contrastive", "contrastive", 0.01), "baselines.contrastive.0."),
    "a functional agreement": ("consistency", row("groups", "functional_agreement", 0.1, condition="topk_lambda_0_1"),
                               "consistency.groups.1.functional_agreement"),
    "pairs of related seeds": ("consistency", row("pairs", "pwmcc", -0.05, of="topk_lambda_0_1", seed_a=0, seed_b=2),
                               "consistency.sweep.1.pwmcc_within"),
    "pairs of unrelated seeds": ("consistency", row("pairs", "pwmcc", -0.01, of="topk_lambda_0_3", seed_a=0, seed_b=1),
                                 "consistency.sweep.2.delta_pwmcc"),
    "an alignment with a reference": ("consistency", row("checkpoints", "alignment", 0.01, condition="topk_lambda_0_1"),
                                      "consistency.sweep.1.alignment"),
    "CE-Bench on validation stories": ("consistency", row("checkpoints", "cebench", 0.5),
                                       "consistency.checkpoints.0.cebench"),
    "a recovery of known features": ("consistency", row("known_truth", "recovery", 0.01, weight=0.1),
                                     "consistency.known_truth.1.recovery"),
    "the norm limit": ("activations", lambda record: record["summary"].update(norm_limit=99.0),
                       "activations.summary.norm_limit"),
    "texts that were read": ("activations", row("sources", "texts", 5), "activations.sources.0.texts"),
    "weights": ("frontier", lambda record: record["tables"]["members"][0].update(weights_sha256="0" * 64),
                "frontier.members.0.weights_sha256"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of the run are here, as on a reader's machine: with them, an audit finds some of these changes."""
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize(("step", "change", "place"), MEASURED.values(), ids=MEASURED.keys())
def test_a_falsified_measurement_is_found_by_a_reproduction_alone(
    made: Run, run: Run, step: str, change: Change, place: str
) -> None:
    change_record(run, step, change)
    derive_again(run)
    assert audit_run(run).problems == []
    compared = compare(run, made)
    assert any(value.place.startswith(place) for value in compared.differing())
    assert not compared.is_reproduced


def test_another_device_is_found_by_a_reproduction_alone(made: Run, run: Run) -> None:
    steps = ("activations", "baselines", "frontier", "consistency", "scaling", "confirmation", "stress")
    for step in steps:
        change_record(run, step, lambda record: record["environment"].update(device="cuda (H200)"))
    derive_again(run)
    assert audit_run(run).problems == []
    compared = compare(run, made)
    assert {value.place for value in compared.differing()} == {f"{step}.device" for step in steps}


def test_a_run_equals_itself_whatever_the_keys_of_its_cache(made: Run, run: Run) -> None:
    assert set(compare(made, made).counts) == {"equal"}

    def other_keys(record: dict[str, Any]) -> None:
        for member in record["tables"]["members"]:
            member["key"] = "0" * 64

    change_record(run, "baselines", other_keys)
    compared = compare(run, made)
    assert (set(compared.counts), compared.is_reproduced) == ({"equal"}, True)
    assert compared.counts["equal"] > 1000


def test_records_are_compared_and_not_the_results_that_follow_from_them(made: Run, run: Run) -> None:
    """A forger may leave `results.json` as it was: an audit finds that, and a reproduction does not rely on it."""
    change_record(run, "frontier", row("members", "explained_variance", 0.001))
    [value] = compare(run, made).differing()
    assert (value.place, value.outcome) == ("frontier.members.0.explained_variance", "different")
    assert value.stated == pytest.approx(value.reproduced + 0.001)


def test_a_row_that_one_run_lacks_is_different_and_absent_there(made: Run, run: Run) -> None:
    change_record(run, "frontier", lambda record: record["tables"]["pairs"].pop())
    lacking, more = compare(run, made, tolerance=9.0), compare(made, run, tolerance=9.0)
    columns = len(made.record("frontier").data["tables"]["pairs"][0])
    assert (lacking.counts["different"], more.counts["different"]) == (columns, columns)
    assert {value.stated for value in lacking.differing()} == {"absent"}


def test_within_a_tolerance_numbers_are_reproduced_and_other_choices_are_counted(made: Run, run: Run) -> None:
    change_record(run, "frontier", row("members", "explained_variance", 0.001))
    change_record(run, "frontier", update("probes", best_k=1, latents="3"))
    exact, near, far = (compare(run, made, tolerance) for tolerance in (0.0, 0.0005, 0.01))
    assert exact.counts["different"] == 3
    assert (near.counts["different"], near.counts["other choice"]) == (1, 2)
    assert (far.is_reproduced, far.counts["within tolerance"], far.counts["other choice"]) == (True, 1, 2)


def test_a_comparison_as_json_lists_the_largest_differences_first() -> None:
    values = (
        Value("a", 1.0, 1.0, "equal"),
        Value("b", 1.0, 1.25, "different"),
        Value("c", 1.0, 3.0, "different"),
        Value("d", "x", "y", "different"),
    )
    compared = Comparison("smoke/run_x", 0.0, values).as_json()
    assert compared["counts"] == {"different": 3, "equal": 1}
    assert (compared["run"], compared["reproduced"]) == ("smoke/run_x", False)
    assert [value["place"] for value in compared["differing"]] == ["c", "b", "d"]
