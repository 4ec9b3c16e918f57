"""Runs and records: typed, hashed as they are written, verified as they are read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from stand_ins import SMOKE, note_notebook, notebook, synthetic_run

from husai_lib.errors import EvidenceError, IntegrityError, ParameterError
from husai_lib.evidence import runs as evidence
from husai_lib.evidence.rows import ProbeRow, SourceRow
from husai_lib.evidence.runs import Run, find_run, find_runs, new_run
from husai_lib.evidence.steps import open_step, step_key
from husai_lib.files import read_json, sha256_file
from husai_lib.params.cycle import load_cycle

GATES = load_cycle(SMOKE).model_dump(mode="json")["gates"]
PROBE = ProbeRow(condition="a", seed=0, data_set="d", best_k=1, validation_auc=0.5, test_auc=0.75, llm_auc=0.5,
                 delta=0.25)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        return synthetic_run(folder / "evidence")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path, "smoke")


def test_a_record_is_read_back_typed(run: Run) -> None:
    step = open_step("frontier", str(run.path), gates=GATES)
    assert step.params.gates.max_ood_drop == 0.10
    written = step.write({"probes": [PROBE]}, device="cpu", best=1.5)
    read = run.record("frontier")
    assert read.table("probes") == [PROBE]
    assert read.summary == {"best": 1.5}
    assert read.sha256 == written.sha256 == sha256_file(run.path / "records" / "frontier.json")


def test_a_record_carries_where_it_comes_from(run: Run) -> None:
    first = open_step("baselines", str(run.path)).write()
    step = open_step("frontier", str(run.path), gates=GATES)
    step.read("baselines")
    step.publish("results.json", {"a": 1})
    data = step.write(device="cuda (H200)").data
    assert data["inputs"] == {"baselines": first.sha256}
    assert data["published"] == {"results.json": sha256_file(run.path / "results.json")}
    assert (data["step"], data["cycle"], data["parameters"]) == ("frontier", "smoke", {"gates": GATES})
    assert data["environment"]["device"] == "cuda (H200)"
    assert set(data["environment"]["packages"]) >= {"torch", "numpy", "sae-lens"}
    assert data["wall_seconds"] >= 0


def test_a_record_names_no_machine_and_no_person(run: Run) -> None:
    import getpass
    import platform

    text = str(open_step("frontier", str(run.path)).write().data["environment"])
    assert str(run.path) not in text
    assert platform.node() not in text
    assert getpass.getuser() not in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_not_recorded(run: Run, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        open_step("frontier", str(run.path)).write(best=value)
    assert run.journal == {}
    with pytest.raises(ValueError, match="finite"):
        ProbeRow(**PROBE.model_dump() | {"delta": value})


def test_rows_of_another_table_are_not_taken(run: Run) -> None:
    row = SourceRow(role="training", data_set="d", texts=1, tokens=1, rows=1)
    with pytest.raises(AssertionError, match="another table"):
        open_step("frontier", str(run.path)).write({"members": [row]})


def test_a_wrong_section_is_refused_when_the_step_opens(run: Run) -> None:
    with pytest.raises(ParameterError, match=r"step frontier: gates: key 'max_ood_dropp' is unknown"):
        open_step("frontier", str(run.path), gates={"max_ood_dropp": 1.0})


def test_without_a_run_a_step_belongs_to_a_scratch_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUSAI_SCRATCH", raising=False)
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    assert open_step("frontier").run.path == tmp_path / "cache" / "scratch" / "smoke" / "run"
    monkeypatch.setenv("HUSAI_SCRATCH", str(tmp_path / "scratch"))
    open_step("frontier").write()
    assert open_step("gate").read("frontier").step == "frontier"


def test_a_changed_or_missing_record_is_refused(run: Run) -> None:
    with pytest.raises(EvidenceError, match="no record of step 'frontier'; run that step first"):
        run.record("frontier")
    open_step("frontier", str(run.path)).write(best=1.5)
    path = run.path / "records" / "frontier.json"
    path.write_text(path.read_text().replace("1.5", "2.5"))
    with pytest.raises(IntegrityError, match="was changed"):
        run.record("frontier")


def test_progress_is_one_file_that_is_no_evidence(run: Run) -> None:
    step = open_step("frontier", str(run.path))
    step.progress(1, 3, "members")
    step.progress(2, 3, "members")
    assert read_json(run.path / "progress.json") == {"step": "frontier", "done": 2, "total": 3, "what": "members"}
    run.write_manifest()
    assert run.manifest()["files"] == {}


def test_a_saved_figure_is_kept_with_its_hash_and_the_same_twice(run: Run) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([0, 1])
    step = open_step("stress", str(run.path))
    assert step.save_figure(figure, "stress") is figure
    first = step.published["figures/stress.png"]
    step.save_figure(figure, "stress")
    assert step.published["figures/stress.png"] == first == sha256_file(run.path / "figures" / "stress.png")
    plt.close(figure)


# The journal


def test_a_step_written_again_replaces_its_older_version(run: Run) -> None:
    first = open_step("frontier", str(run.path)).write(best=1)
    second = open_step("frontier", str(run.path)).write(best=2)
    assert first.sha256 != second.sha256
    assert run.journal["frontier"]["files"] == {"records/frontier.json": second.sha256}


def test_an_executed_notebook_joins_the_files_of_its_step(run: Run) -> None:
    record = open_step("frontier", str(run.path)).write()
    path = notebook(run.path / "notebooks" / "n.ipynb", "a = 1")
    note_notebook(run, "frontier", path)
    entry = run.journal["frontier"]
    assert entry["files"] == {"records/frontier.json": record.sha256, "notebooks/n.ipynb": sha256_file(path)}
    assert entry["key"] == step_key("frontier", {})


def test_a_changed_journal_is_refused(run: Run) -> None:
    open_step("frontier", str(run.path)).write()
    path = run.path / "journal.json"
    path.write_text(path.read_text().replace("frontier", "frontiex"))
    with pytest.raises(IntegrityError, match=r"journal.json was changed"):
        _ = run.journal


def test_a_step_key_depends_on_step_parameters_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    key = step_key("gate", {"gates": GATES})
    assert key == step_key("gate", {"gates": dict(reversed(GATES.items()))})
    assert key != step_key("stress", {"gates": GATES})
    assert key != step_key("gate", {"gates": GATES | {"max_ood_drop": 0.2}})
    monkeypatch.setattr(evidence, "library_hash", lambda: "other")
    assert key != step_key("gate", {"gates": GATES})


# The manifest and finding runs


def test_a_manifest_lists_every_file_with_its_hash(made: Run) -> None:
    run = made
    files = run.manifest()["files"]
    present = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert set(files) == present - {"manifest.json"}
    assert all(sha256_file(run.path / name) == sha256 for name, sha256 in files.items())


def test_a_changed_manifest_is_refused(run: Run) -> None:
    run.write_manifest(verdict="Not released")
    assert run.is_complete
    path = run.path / "manifest.json"
    path.write_text(path.read_text().replace("Not released", "May be released"))
    with pytest.raises(IntegrityError, match=r"manifest.json was changed"):
        run.manifest()


def test_a_run_without_a_manifest_is_unfinished_and_says_so(run: Run) -> None:
    with pytest.raises(EvidenceError, match="is unfinished: it has no manifest"):
        run.manifest()


def test_runs_never_share_a_folder(tmp_path: Path) -> None:
    names = [new_run(tmp_path, "smoke").path for _ in range(2)]
    assert len(set(names)) == 2
    assert [run.path for run in find_runs(tmp_path)] == names


def test_the_newest_run_is_found_by_time_whatever_its_cycle(tmp_path: Path) -> None:
    for name in ("a/run_20260102T000000Z", "b/run_20260101T000000Z", "a/run_20250101T000000Z"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "notes.txt").touch()
    assert find_run(tmp_path, None).name == "a/run_20260102T000000Z"
    assert find_run(tmp_path, "b").name == "b/run_20260101T000000Z"
    assert find_run(tmp_path, "a").name == "a/run_20260102T000000Z"
    assert find_run(tmp_path, "run_20250101T000000Z").name == "a/run_20250101T000000Z"
    assert find_run(tmp_path, f"{tmp_path}/a/run_20250101T000000Z/").name == "a/run_20250101T000000Z"
    with pytest.raises(EvidenceError, match="no run is called 'c'"):
        find_run(tmp_path, "c")
    with pytest.raises(EvidenceError, match="holds no runs"):
        find_run(tmp_path / "empty", None)
