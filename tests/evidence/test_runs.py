"""Runs and records: typed, hashed as they are written, verified as they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import synthetic_run

from husai_lib.errors import EvidenceError, IntegrityError, ParameterError
from husai_lib.evidence.runs import Run, find_run, find_runs, new_run
from husai_lib.evidence.steps import environment, open_step
from husai_lib.files import sha256_file, write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        return synthetic_run(folder / "evidence")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path, "smoke")


def test_a_changed_or_missing_record_is_refused(run: Run) -> None:
    with pytest.raises(EvidenceError, match="no record of step 'frontier'; run that step first"):
        run.record("frontier")
    open_step("frontier", str(run.path)).write(best=1.5)
    path = run.path / "records" / "frontier.json"
    path.write_text(path.read_text().replace("1.5", "2.5"))
    with pytest.raises(IntegrityError, match="was changed"):
        run.record("frontier")


def test_a_record_has_no_other_keys_than_every_record_has(run: Run) -> None:
    data = open_step("frontier", str(run.path)).write(best=1.5).data
    sha256 = write_json(run.path / "records" / "frontier.json", data | {"pass_all": True})
    run.note_step("frontier", {"files": {"records/frontier.json": sha256}, "key": ""})
    with pytest.raises(ParameterError, match=r"frontier.json: key 'pass_all' is unknown"):
        run.record("frontier")


# The journal


def test_a_step_written_again_replaces_its_older_version(run: Run) -> None:
    first = open_step("frontier", str(run.path)).write(best=1)
    second = open_step("frontier", str(run.path)).write(best=2)
    assert first.sha256 != second.sha256
    assert run.journal["frontier"]["files"] == {"records/frontier.json": second.sha256}


def test_a_dropped_step_leaves_nothing_behind(run: Run) -> None:
    for name in ("frontier", "gate"):
        open_step(name, str(run.path)).write()
    run.drop_step("gate")
    run.drop_step("a step that was never written")
    assert list(run.journal) == ["frontier"]
    assert [path.name for path in run.path.glob("records/*")] == ["frontier.json"]


def test_every_attempt_stays_in_the_journal(run: Run) -> None:
    places = [environment("") | {"cpu": cpu} for cpu in ("a", "b")]
    for place in places:
        run.note_attempt(place)
    open_step("frontier", str(run.path)).write()
    assert run.attempts == places


def test_a_changed_journal_is_refused(run: Run) -> None:
    open_step("frontier", str(run.path)).write()
    path = run.path / "journal.json"
    path.write_text(path.read_text().replace("frontier", "frontiex"))
    with pytest.raises(IntegrityError, match=r"journal.json was changed"):
        _ = run.journal


# The manifest and finding runs


def test_a_manifest_lists_every_file_with_its_hash(made: Run) -> None:
    files = made.manifest()["files"]
    present = {str(path.relative_to(made.path)) for path in made.path.rglob("*") if path.is_file()}
    assert set(files) == present - {"manifest.json"}
    assert all(sha256_file(made.path / name) == sha256 for name, sha256 in files.items())


def test_only_the_manifest_and_the_progress_of_the_run_itself_are_not_listed(run: Run) -> None:
    (run.path / "records").mkdir()
    for name in ("progress.json", "records/progress.json", "records/manifest.json"):
        (run.path / name).write_text("{}\n", encoding="utf-8")
    run.write_manifest()
    assert set(run.manifest()["files"]) == {"records/progress.json", "records/manifest.json"}


def test_what_a_killed_write_or_an_editor_left_is_removed(run: Run) -> None:
    folder = run.path / "notebooks" / ".ipynb_checkpoints"
    folder.mkdir(parents=True)
    (folder / ".hidden.ipynb").touch()
    (run.path / ".half-written").touch()
    run.write_manifest()
    assert run.manifest()["files"] == {}
    assert [path.name for path in sorted(run.path.iterdir())] == ["manifest.json", "notebooks"]


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
