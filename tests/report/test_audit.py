"""An audit finds every change of a complete run, whether in bytes or in numbers that no longer follow."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from stand_ins import forge_hashes, notebooks_of, rewrite, synthetic_run

from husai_lib.errors import EvidenceError
from husai_lib.evidence.runs import Run
from husai_lib.files import read_json, sha256_file, write_json
from husai_lib.report import recomputed
from husai_lib.report.audit import Audit, audit_run

RANDOM_DECODERS = 3
"""Pairs of random decoders, which take torch to be made again."""
PROSE = 2
"""Notebooks of another version, whose prose cannot be checked."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        return synthetic_run(folder / "evidence")


@pytest.fixture
def run(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the synthetic run and its cache, to damage."""
    folder = made.path.parent.parent.parent
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "copy" / "cache"))
    return Run(tmp_path / "copy" / made.path.relative_to(folder))


def audited(run: Run) -> Audit:
    return audit_run(run, notebooks_of(run))


def test_a_run_that_is_what_it_says_verifies_and_tells_what_was_checked(run: Run) -> None:
    audit = audited(run)
    assert (audit.problems, audit.not_here, audit.not_checked) == ([], 0, RANDOM_DECODERS)
    # 23 files, 16 cache entries, 9 members, 2 groups, 12 pairs, 18 probes, 2 candidates, 4 controls and their 6 SAEs,
    # 6 rows of the OOD control, 7 gates, and of the notebooks 31 outputs and their cells
    assert audit.checked > 23 + 16 + 9 * 5 + 2 * 9 + 12 + 18 * 2 + 2 * 15 + 4 * 5 + 6 * 4 + 6 * 4 + 7 * 10 + 31 * 4


def test_weights_that_are_not_here_are_counted_and_no_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(run.path / "nowhere"))
    audit = audited(run)
    pairs = 12  # three of two conditions, and of two controls
    assert (audit.problems, audit.not_here) == ([], 9 + 6 + 1 + pairs)


def test_records_made_before_there_were_pairs_are_no_problem_and_their_pwmcc_is_not_checked(run: Run) -> None:
    for step in ("frontier", "stress"):
        without_pairs(run, step)
    audit = audited(run)
    # the bounds of 2 groups; of 3 controls the bounds, and of 2 of them the value
    assert (audit.problems, audit.not_checked) == ([], 2 * 2 + 3 * 2 + 2 + PROSE)


@pytest.mark.parametrize("step", ["frontier", "stress"])
def test_pairs_in_one_record_and_not_in_the_other_are_found(run: Run, step: str) -> None:
    without_pairs(run, step)
    assert any(problem.startswith("steps with a table of pairs") for problem in audited(run).problems)


def test_a_record_without_the_pairs_that_its_notebook_writes_is_found(run: Run) -> None:
    for step in ("frontier", "stress"):
        rewrite(run, step, lambda record: record["tables"].pop("pairs"))
    assert any(problem.startswith("steps with a table of pairs") for problem in audited(run).problems)


def without_pairs(run: Run, step: str) -> None:
    """As if the record had been made before there were pairs."""
    [path] = [run.path / name for name in run.journal[step]["files"] if name.startswith("notebooks/")]
    path.write_text(path.read_text().replace(r" | {\"pairs\": pairs}", ""))
    rewrite(run, step, lambda record: record["tables"].pop("pairs"))


def test_pairs_of_wide_saes_are_counted_as_not_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputed, "WIDEST", 63)
    audit = audited(run)
    assert (audit.problems, audit.not_checked) == ([], RANDOM_DECODERS + 12)


FILES = ("manifest.json", "journal.json", "parameters.json", "release_policy.json", "selection_summary.json",
         "records/activations.json", "records/baselines.json", "records/frontier.json", "records/selection.json",
         "records/stress.json", "records/gate.json", "notebooks/03_frontier.ipynb", "notebooks/08_gate.ipynb",
         "results.json", "figures/controls.png")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_wherever_it_is(run: Run, name: str) -> None:
    path, draw = run.path / name, random.Random(name)
    original = path.read_bytes()
    for _ in range(25):
        place, bit = draw.randrange(len(original)), draw.randrange(8)
        damaged = bytearray(original)
        damaged[place] ^= 1 << bit
        path.write_bytes(bytes(damaged))
        assert audited(run).problems, f"bit {bit} of byte {place} of {name}"
    path.write_bytes(original)
    assert audited(run).problems == []


def test_a_flipped_bit_in_weights_or_activations_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = run.path.parent.parent.parent / "cache"
    stored = [*cache.glob("saes/*/*.safetensors"), *cache.glob("banks/*/*.npy")]
    assert len(stored) == 9 + 6 + 1
    for path in stored:
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 4]))
        assert len(audited(run).problems) == 1
        path.write_bytes(original)


def test_other_weights_under_the_same_key_are_found(run: Run) -> None:
    """An entry that agrees with itself but not with the record."""
    entry = next((run.path.parent.parent.parent / "cache" / "saes").glob("*/entry.json"))
    weights = entry.parent / "sae_weights.safetensors"
    weights.write_bytes(b"other weights")
    content = read_json(entry)
    content["files"]["sae_weights.safetensors"] = sha256_file(weights)
    write_json(entry, content)
    assert any("SHA-256 in the cache of" in problem for problem in audited(run).problems)


def test_weights_that_cannot_be_read_are_a_problem_and_no_traceback(run: Run) -> None:
    """Bytes that are no weights, where record and entry agree on them."""
    member = next(row for row in run.record("frontier").table("members") if row.condition == "standard")
    entry = run.path.parent.parent.parent / "cache" / "saes" / member.key / "entry.json"
    weights = entry.parent / "sae_weights.safetensors"
    weights.write_bytes(b"no weights")
    write_json(entry, read_json(entry) | {"files": {weights.name: sha256_file(weights)}})
    changed = {"weights_sha256": sha256_file(weights)}
    rewrite(run, "frontier", lambda record: row_of(record, "members", key=member.key).update(changed))
    assert any("do not fit together (SafetensorError" in problem for problem in audited(run).problems)


def test_a_missing_or_added_file_is_found(run: Run) -> None:
    (run.path / "records" / "extra.json").write_text("{}\n")
    assert any("extra.json" in problem for problem in audited(run).problems)
    (run.path / "records" / "extra.json").unlink()
    (run.path / "figures" / "controls.png").unlink()
    assert any("figures/controls.png is 'missing'" in problem for problem in audited(run).problems)


def test_an_unfinished_run_cannot_be_audited(run: Run) -> None:
    (run.path / "manifest.json").unlink()
    with pytest.raises(EvidenceError, match="unfinished"):
        audited(run)


def row_of(record: dict[str, Any], table: str, **where: Any) -> dict[str, Any]:
    return next(row for row in record["tables"][table] if all(row[key] == value for key, value in where.items()))


FORGERIES: dict[str, tuple[str, str, dict[str, Any], str, Any]] = {
    "SAEBench delta of a member": ("frontier", "members", {"condition": "topk", "seed": 1}, "saebench_delta", 0.9),
    "AUC of a member": ("frontier", "members", {"condition": "topk", "seed": 1}, "saebench_auc", 0.9),
    "CE-Bench delta": ("frontier", "members", {"condition": "topk", "seed": 1}, "cebench_delta", 0.9),
    "CE-Bench delta of a baseline": ("baselines", "members", {"seed": 1}, "cebench_delta", 0.0),
    "ceiling": ("frontier", "members", {"condition": "topk", "seed": 1}, "cebench_ceiling", 9.0),
    "matched L0": ("frontier", "members", {"condition": "topk", "seed": 1}, "l0_matched", False),
    "L0": ("frontier", "members", {"condition": "topk", "seed": 1}, "l0", 9.0),
    "delta of a probe": ("frontier", "probes", {"condition": "topk", "seed": 1}, "delta", 0.9),
    "corrected PW-MCC": ("frontier", "groups", {"condition": "topk"}, "pwmcc_corrected", 0.9),
    "interval of PW-MCC": ("frontier", "groups", {"condition": "topk"}, "pwmcc_low", 0.65),
    "seeds of a group": ("frontier", "groups", {"condition": "topk"}, "n_seeds", 4),
    "mean of a candidate": ("selection", "candidates", {"condition": "topk"}, "saebench_delta", 0.9),
    "bound of a candidate": ("selection", "candidates", {"condition": "topk"}, "saebench_delta_low", 0.0),
    "front": ("selection", "candidates", {"condition": "standard"}, "on_front", True),
    "selected": ("selection", "candidates", {"condition": "standard"}, "selected", True),
    "joint score": ("selection", "candidates", {"condition": "topk"}, "joint_score", 2.0),
    "selection probability": ("selection", "candidates", {"condition": "topk"}, "selection_probability", 0.5),
    "delta of a control": ("stress", "controls", {"control": "random_model"}, "delta", 0.26),
    "sign of the transcoder": ("stress", "controls", {"control": "transcoder"}, "delta", -0.09),
    "mean OOD drop": ("stress", "controls", {"control": "ood"}, "delta", 0.055),
    "OOD drop of a task": ("stress", "ood", {"seed": 1}, "drop", -0.5),
    "OOD drop's bound over tasks": ("stress", "controls", {"control": "ood"}, "tasks_high", 0.049),
    "OOD delta in domain": ("stress", "controls", {"control": "ood"}, "candidate", -0.04),
    "OOD delta shifted": ("stress", "controls", {"control": "ood"}, "control_value", -0.11),
    "a control of other weights": ("stress", "controls", {"control": "random_model"}, "candidate_sha256", "0" * 64),
    "an OOD task of other weights": ("stress", "ood", {"seed": 1}, "weights_sha256", "0" * 64),
    "random decoders that are none": ("stress", "controls", {"control": "random_decoder"}, "control_value", 0.21),
    "a control that was not run": ("stress", "controls", {"control": "random_model"}, "delta", None),
    "width of a control's SAE": ("stress", "control_saes", {"control": "transcoder"}, "d_sae", 128),
    "k of a control's SAE": ("stress", "control_saes", {"control": "transcoder"}, "k", 9),
    "seed of a control's SAE": ("stress", "control_saes", {"control": "transcoder"}, "seed", 7),
    "L0 of a control's SAE": ("stress", "control_saes", {"control": "random_model"}, "l0", 9.0),
    "architecture of a control's SAE": ("stress", "control_saes", {"control": "random_model"}, "architecture", "gated"),
    "verdict": ("gate", "gates", {"gate": "transcoder"}, "verdict", "pass"),
    "verdict that should pass": ("gate", "gates", {"gate": "ood"}, "verdict", "fail"),
    "threshold": ("gate", "gates", {"gate": "random_model"}, "threshold", 0.25),
    "value of a gate": ("gate", "gates", {"gate": "random_model"}, "value", 0.28),
    "bound of an external gate": ("gate", "gates", {"gate": "external_saebench"}, "bound", 0.01),
    "requirement": ("gate", "gates", {"gate": "transcoder"}, "required", False),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_number_that_does_not_follow_is_found_though_all_hashes_agree(
    run: Run, forgery: tuple[str, str, dict[str, Any], str, Any]
) -> None:
    step, table, where, column, value = forgery

    def change(record: dict[str, Any]) -> None:
        row = row_of(record, table, **where)
        assert row[column] != value
        row[column] = value

    rewrite(run, step, change)
    problems = audited(run).problems
    assert problems
    assert not any("SHA-256" in problem for problem in problems)


def test_the_forger_of_these_tests_leaves_no_other_trace(run: Run) -> None:
    rewrite(run, "frontier", lambda record: None)
    assert audited(run).problems == []


def test_a_difference_within_rounding_is_none(run: Run) -> None:
    def change(record: dict[str, Any]) -> None:
        row_of(record, "members", condition="topk", seed=1)["saebench_delta"] += 1e-12

    rewrite(run, "frontier", change)
    assert audited(run).problems == []


def test_pass_all_that_does_not_follow_is_found(run: Run) -> None:
    rewrite(run, "gate", lambda record: record["summary"].update(pass_all=True))
    assert any(problem.startswith("record gate: pass_all is True") for problem in audited(run).problems)


def test_another_representative_than_the_median_seed_is_found(run: Run) -> None:
    rewrite(run, "selection", lambda record: record["summary"]["selected"].update(seed=2))
    assert any(problem.startswith("record selection: selected") for problem in audited(run).problems)


def test_controls_of_another_group_are_found(run: Run) -> None:
    def change(record: dict[str, Any]) -> None:
        for row in record["tables"]["controls"][:3]:  # so that every delta still follows
            row["candidate"], row["control_value"] = row["candidate"] - 0.2, row["control_value"] - 0.2

    rewrite(run, "stress", change)
    problems = [problem for problem in audited(run).problems if problem.startswith("candidate of stress/controls")]
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("control", "column", "value"),
    [
        ("random_decoder", "control_value", 0.21),
        ("random_decoder", "delta_low", 0.36),
        ("random_model", "control_value", 0.34),
        ("random_model", "delta_high", 0.29),
        ("transcoder", "control_value", 0.49),
        ("transcoder", "delta_low", -0.14),
        ("transcoder", "candidate", 0.59),
        ("random_model", "candidate_sha256", "0" * 64),
        ("ood", "tasks_low", 0.04),
        ("ood", "tasks_high", 0.06),
    ],
)
def test_a_column_of_a_control_is_recomputed_by_itself(run: Run, control: str, column: str, value: Any) -> None:
    rewrite(run, "stress", lambda record: row_of(record, "controls", control=control).update({column: value}))
    assert any(problem.startswith(f"{column} of stress/controls {control} is") for problem in audited(run).problems)


def test_a_control_without_an_sae_at_each_seed_is_found(run: Run) -> None:
    rewrite(run, "stress", lambda record: record["tables"]["control_saes"].pop())
    [problem] = audited(run).problems
    assert (
        problem == "control of stress/controls transcoder is 'transcoder' but must be 'a control at the seeds [0, 1]'"
    )


def test_a_record_of_other_parameters_is_found(run: Run) -> None:
    rewrite(run, "gate", lambda record: record["parameters"]["gates"].update(max_ood_drop=0.5))
    assert any("record gate: section gates" in problem for problem in audited(run).problems)


def test_what_does_not_hold_together_is_a_problem_and_no_traceback(run: Run) -> None:
    path = run.path / "records" / "gate.json"
    record = read_json(path)
    del record["parameters"]["gates"]
    write_json(path, record)
    forge_hashes(run)
    assert f"the records of {run.name} do not fit together (KeyError: 'gates')" in audited(run).problems


@pytest.mark.parametrize(
    ("place", "column", "value", "said"),
    [
        ("frontier/probes", "llm_auc", 0.75, "llm_auc of frontier/probes"),
        ("frontier/groups", "architecture", "gated", "architecture of frontier/groups"),
        ("stress/ood", "in_domain_llm_auc", 0.9, "in_domain_llm_auc of stress/ood"),
        ("activations/banks", "rows", 9, "rows of activations/banks"),
        ("frontier/groups", "pwmcc", 0.9, "pwmcc of frontier/groups"),
        ("frontier/groups", "pwmcc_low", 0.1, "pwmcc_low of frontier/groups"),
        ("frontier/groups", "pwmcc_high", 0.9, "pwmcc_high of frontier/groups"),
        ("frontier/pairs", "pwmcc", 0.9, "pwmcc of frontier/pairs"),
        ("frontier/pairs", "seed_b", 0, "pairs of frontier"),
        ("stress/pairs", "of", "ood", "pairs of stress"),
        ("stress/controls", "delta_high", 0.9, "delta_high of stress/controls ood"),
        ("frontier/members", "k", 9, "SAE of frontier"),
        ("baselines/members", "architecture", "gated", "SAE of baselines"),
        ("frontier/probes", "seed", 7, "probes of frontier"),
        ("stress/ood", "task", "another", "tasks of the OOD control"),
    ],
)
def test_a_column_is_held_to_what_it_follows_from(run: Run, place: str, column: str, value: Any, said: str) -> None:
    """The last row, so that where rows share a value the first one still has it."""
    step, table = place.split("/")
    rewrite(run, step, lambda record: record["tables"][table][-1].update({column: value}))
    assert any(problem.startswith(said) for problem in audited(run).problems)


def test_a_file_of_unknown_content_is_counted_as_not_checked(run: Run) -> None:
    (run.path / "notes.json").write_text("{}\n")
    entry = run.journal["gate"]
    run.note_step("gate", entry | {"files": entry["files"] | {"notes.json": ""}})
    rewrite(run, "gate", lambda record: record["published"].update({"notes.json": ""}))
    audit = audited(run)
    assert (audit.problems, audit.not_checked) == ([], RANDOM_DECODERS + 1)
