"""Files of earlier cycles, made by hand and golden, as evidence: what is imported, skipped, refused and audited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from earlier_files import FILES, RUN, frontier, policy, read, save

from husai_lib.earlier.imports import audit_import, import_earlier
from husai_lib.errors import DataError, EvidenceError, HusaiError, ParameterError
from husai_lib.evidence.runs import Run, earlier_run, find_imports, find_runs
from husai_lib.files import REPOSITORY

GOLDEN = REPOSITORY.parent / "shared" / "golden"
OOD = {"id_result": {}, "ood_result": {}, "ood_drop": 0.02}


def audited(run: Run) -> list[str]:
    return [what for what, stated, must in audit_import(run) if stated != must]


def test_a_folder_becomes_evidence_with_provenance(tmp_path: Path) -> None:
    given_files = save(tmp_path / "given", **{f"cycle 1/{kind}": make() for kind, make in FILES.items()})
    run = import_earlier([given_files], "Cycle_1", tmp_path / "evidence")
    assert run.path == tmp_path / "evidence" / "imported" / "Cycle_1"
    manifest = earlier_run(tmp_path / "evidence", "imported/Cycle_1").manifest()
    assert manifest["steps"] == [*(f"cycle_1_{kind}" for kind in sorted(FILES)), "caveats"]
    assert (manifest["cycle"], manifest["verdict"], manifest["pass_all"]) == ("imported", "imported", False)
    summary = run.record("cycle_1_gates").summary
    content = (given_files / "cycle 1" / "gates.json").read_bytes()
    assert (summary["kind"], summary["run_id"], summary["source"]) == ("gates", RUN, "cycle 1/gates.json")
    assert (run.path / "originals" / "cycle_1_gates.json").read_bytes() == content
    assert summary["bytes"] == len(content)
    assert manifest["files"]["originals/cycle_1_gates.json"] == summary["sha256"]
    assert run.record("cycle_1_frontier").table("earlier_members") == read(frontier())[0]["earlier_members"]
    assert len({row.caveat for row in run.record("caveats").table("caveats")}) == 10
    assert audited(run) == []
    assert str(tmp_path) not in "".join(path.read_text() for path in (run.path / "records").iterdir())


def test_nothing_is_left_beside_the_import(tmp_path: Path) -> None:
    import_earlier([save(tmp_path / "given", a=policy())], "x", tmp_path / "evidence")
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == ["imported"]
    assert [path.name for path in (tmp_path / "evidence" / "imported").iterdir()] == ["x"]


def test_unknown_files_and_copies_of_a_folder_are_skipped_and_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "given", a=policy(), b=policy(), ood=OOD, other={"x": 1})
    (folder / "c.json").write_bytes(b"")
    (folder / "notes.txt").write_text("no JSON")
    run = import_earlier([folder], "x", tmp_path)
    assert list(run.journal) == ["a", "caveats"]
    skipped = {entry["source"]: entry["reason"] for entry in run.record("caveats").summary["skipped"]}
    assert list(skipped) == ["b.json", "c.json", "ood.json", "other.json"]
    assert skipped["b.json"].startswith("b.json has the same bytes as a.json")
    assert skipped["ood.json"].startswith("ood.json is none of the records that can be read (assignment_v2, ")
    assert audited(run) == []


def test_record_names_are_unique_identifiers(tmp_path: Path) -> None:
    names = {"A-b": 0.01, "a b": 0.02, "caveats": 0.03, "7": 0.04, "é": 0.05, "x" * 150: 0.06, "gate": 0.07}
    folder = save(tmp_path / "given", **{name: policy(ood_drop=drop) for name, drop in names.items()})
    run = import_earlier([folder], "x", tmp_path)
    assert set(run.journal) == {"a_b", "a_b_2", "caveats_2", "record_7", "record", "x" * 100, "gate_2", "caveats"}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", json.dumps(frontier())[:200].encode(), json.dumps(OOD).encode()]
)
def test_a_file_that_cannot_be_read_is_an_error_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    for given_path in (path, tmp_path):
        with pytest.raises(DataError, match=r"bad\.json"):
            import_earlier([given_path], "x", tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()


def test_files_of_one_name_from_several_folders_are_all_imported(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{seed}", results=frontier(seed)) / "results.json" for seed in (1, 2)]
    run = import_earlier(paths, "x", tmp_path)
    assert set(run.journal) == {"results", "results_2", "caveats"}
    with pytest.raises(DataError, match=r"results\.json has the same bytes as results\.json"):
        import_earlier([paths[0], paths[0]], "y", tmp_path)


def test_a_missing_path_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read \(No such file"):
        import_earlier([tmp_path / "none.json"], "x", tmp_path / "evidence")
    (tmp_path / "empty").mkdir()
    for paths in ([tmp_path / "empty"], []):
        with pytest.raises(DataError, match="nothing to import"):
            import_earlier(paths, "x", tmp_path / "evidence")


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a b", "é", "x\n"])
def test_a_name_that_is_no_folder_of_an_import_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="cannot name an import"):
        import_earlier([save(tmp_path / "given", a=policy())], name, tmp_path)


def test_an_import_that_is_named_as_a_run_is_no_run(tmp_path: Path) -> None:
    import_earlier([save(tmp_path / "given", a=policy())], "run_20260215T035932Z", tmp_path / "evidence")
    assert [run.name for run in find_imports(tmp_path / "evidence")] == ["imported/run_20260215T035932Z"]
    assert find_runs(tmp_path / "evidence") == []


def test_an_existing_import_is_never_touched(tmp_path: Path) -> None:
    folder = save(tmp_path / "given", a=policy())
    before = import_earlier([folder], "x", tmp_path).files()
    with pytest.raises(ParameterError, match="exists; give the import another name"):
        import_earlier([folder], "x", tmp_path)
    assert Run(tmp_path / "imported" / "x").files() == before


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "given", a=policy(), b=frontier())
    monkeypatch.setattr(Run, "write_manifest", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(EvidenceError, match="No space left"):
        import_earlier([folder], "x", tmp_path / "evidence")
    assert list((tmp_path / "evidence").rglob("*")) == []


def test_a_name_that_the_disk_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HusaiError):
        import_earlier([save(tmp_path / "given", a=policy())], "x" * 300, tmp_path)


def test_the_audit_reads_the_originals_again(tmp_path: Path) -> None:
    run = import_earlier([save(tmp_path / "given", a=policy(), b=frontier())], "x", tmp_path)
    other = Run(tmp_path / "imported" / "y")
    shutil.copytree(run.path, other.path)
    (other.path / "originals" / "a.json").write_text(json.dumps(policy(ood_drop=0.5)))
    assert audited(other) == ["sha256 of record a", "bytes of record a", "value of row 2 of a/earlier_gates"]


def test_the_audit_counts_rows_and_reads_caveats_from_the_records(tmp_path: Path) -> None:
    run = import_earlier([save(tmp_path / "given", a=frontier(1, 2))], "x", tmp_path)
    record = run.record("caveats")
    assert len(record.data["tables"]["caveats"]) == 3
    record.data["tables"]["caveats"].pop()
    run.record = lambda step: record if step == "caveats" else Run(run.path).record(step)  # type: ignore[method-assign]
    assert audited(run) == ["number of caveats in record caveats"]


# ---------------------------------------------------------------------------------------------
# Golden files
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if not GOLDEN.is_dir():
        pytest.skip("the golden files of earlier cycles are not here")
    return import_earlier([GOLDEN], "golden", tmp_path_factory.mktemp("evidence"))


def test_every_golden_file_is_read_or_skipped_and_audits(golden: Run) -> None:
    kinds = {step: golden.record(step).summary.get("kind") for step in golden.journal}
    assert kinds == {
        "cycle2_assignment_v2_results": "assignment_v2", "cycle2_release_policy": "gates",
        "cycle3_frontier_results": "frontier", "cycle3_release_policy": "gates",
        "cycle3_scaling_results": "scaling", "cycle3_selection_summary": "selection",
        "schema_examples_assignment_v3_results": "assignment_v3", "caveats": None,
    }  # fmt: skip
    skipped = [entry["source"].rpartition("/")[2] for entry in golden.record("caveats").summary["skipped"]]
    assert skipped == ["ood_stress_summary.json", "transcoder_sweep_results.json"]
    assert audited(golden) == []


def test_every_golden_gate_with_one_number_is_as_that_number_says(golden: Run) -> None:
    rows = [row for step in golden.journal if "earlier_gates" in golden.record(step).data["tables"]
            for row in golden.record(step).table("earlier_gates")]  # fmt: skip
    assert len(rows) == 5 + 5 + 7 + 5
    for row in rows:
        if row.threshold is not None:
            judged = row.value if row.bound is None else row.bound
            sign = -1 if row.direction == "below" else 1
            passes = judged is not None and sign * judged >= sign * row.threshold
            assert row.stated == ("pass" if passes else "fail"), row.gate


def test_the_golden_sweep_holds_what_its_acceptance_rests_on(golden: Run) -> None:
    record = golden.record("cycle2_assignment_v2_results")
    gates = {row.gate: row.value for row in record.table("earlier_gates")}
    sweep = {row.lambda_consistency: row for row in record.table("earlier_sweep")}
    best = max(sweep.values(), key=lambda row: row.delta_low)
    assert best.lambda_consistency == record.summary["best_lambda"]
    assert (best.delta, best.delta_low) == (gates["delta_pwmcc"], gates["delta_lcb"])
    assert sweep[0.0].explained_variance - best.explained_variance == pytest.approx(gates["ev_drop"], abs=1e-12)


def test_the_golden_members_are_those_that_the_golden_selection_ranked(golden: Run) -> None:
    members = [*golden.record("cycle3_frontier_results").table("earlier_members"),
               *golden.record("cycle3_scaling_results").table("earlier_members")]  # fmt: skip
    complete = [row for row in members if None not in (row.saebench_delta, row.cebench_delta) and not row.failed]
    counts = golden.record("cycle3_selection_summary").summary["counts"]
    assert (len(members), len(complete)) == (counts["total_candidates"], counts["eligible_seed_candidates"])
    for group_row in golden.record("cycle3_selection_summary").table("earlier_groups"):
        own = [row for row in complete if row.condition == group_row.condition]
        assert len(own) == group_row.n_seeds
        assert sum(row.saebench_delta for row in own) / len(own) == pytest.approx(group_row.saebench_delta)
        assert sum(row.cebench_delta for row in own) / len(own) == pytest.approx(group_row.cebench_delta)


def test_the_golden_files_show_what_is_known_to_be_wrong_with_them(golden: Run) -> None:
    shown = {(row.caveat, row.record): row for row in golden.record("caveats").table("caveats")}
    assert shown["width_ceiling", "cycle3_frontier_results"].rows == 20
    assert shown["unmatched_l0", "cycle3_frontier_results"].rows == 15
    assert "8 data sets" in shown["unequal_data_sets", "cycle3_selection_summary"].what
    assert shown["one_reference", "schema_examples_assignment_v3_results"].rows == 4
