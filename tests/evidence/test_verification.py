"""Damage that is found by hashes and completeness alone, without a number being recomputed.

Flipped bits and truncations of every kind of file: see faults/test_damage.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forging import copied, fast_audits, smoke_copy

from husai_lib.evidence import code, verification
from husai_lib.evidence.runs import Run, find_imports, find_runs, write_sealed
from husai_lib.evidence.verification import problems_beside, problems_of
from husai_lib.files import REPOSITORY, read_json, write_json

Damage = Callable[[Run], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        fast_audits(patch)
        yield smoke_copy(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be damaged."""
    return copied(made, tmp_path)


def evidence(run: Run) -> Path:
    return run.path.parent.parent


def test_a_run_and_an_import_as_they_were_written_have_no_problem(run: Run) -> None:
    assert [problems_of(one) for one in (run, *find_imports(evidence(run)))] == [[], []]
    assert problems_beside(evidence(run)) == []


def test_committed_evidence_has_no_problem() -> None:
    committed = REPOSITORY / "evidence"
    problems = {one.name: problems_of(one) for one in (*find_runs(committed), *find_imports(committed))}
    assert [name for name, found in problems.items() if found] == []
    assert problems_beside(committed) == []


def linked(name: str) -> Damage:
    """A link to the same content, in place of a file or folder of the run."""

    def damage(run: Run) -> None:
        elsewhere = evidence(run).parent / "elsewhere"
        (run.path / name).rename(elsewhere)
        (run.path / name).symlink_to(elsewhere)

    return damage


def added(name: str) -> Damage:
    def damage(run: Run) -> None:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("{}\n", encoding="utf-8")

    return damage


def resealed(name: str, **change: object) -> Damage:
    """A manifest or journal with other content and the right hash of its own."""

    def damage(run: Run) -> None:
        content = {key: value for key, value in read_json(run.path / name).items() if key != "sha256"}
        write_sealed(run.path / name, {key: value for key, value in (content | change).items() if value is not None})

    return damage


def earlier_edited(run: Run) -> None:
    path = evidence(run) / "imported" / "cycle3" / "records" / "caveats.json"
    data = read_json(path)
    data["tables"]["caveats"].pop()
    write_json(path, data)


DAMAGED: dict[str, tuple[Damage, str]] = {
    "a file changed": (lambda run: (run.path / "results.json").write_text("{}\n"), "results.json was changed after"),
    "a file missing": (lambda run: (run.path / "figures" / "ood.png").unlink(), "figures/ood.png is missing"),
    "a record missing": (lambda run: (run.path / "records" / "gate.json").unlink(), "records/gate.json is missing"),
    "the journal missing": (lambda run: (run.path / "journal.json").unlink(), "journal.json is missing"),
    "a file more": (added("records/extra.json"), "records/extra.json is not listed in the manifest"),
    "a hidden file": (added(".hidden.json"), ".hidden.json is not listed in the manifest"),
    "a hidden notebook": (added("notebooks/.08_gate.ipynb"), "notebooks/.08_gate.ipynb is not listed"),
    "a file named like a manifest": (added("records/manifest.json"), "records/manifest.json is not listed"),
    "a file named like a passing one": (added("records/progress.json"), "records/progress.json is not listed"),
    "a link in place of a file": (linked("records/gate.json"), "records/gate.json is a link"),
    "a link in place of a folder": (linked("figures"), "figures is a link"),
    "a link in place of the manifest": (linked("manifest.json"), "manifest.json is a link"),
    "a link in place of the run": (linked("."), " is a link"),
    "a link to nowhere": (lambda run: (run.path / "notes.md").symlink_to("nowhere"), "notes.md is a link"),
    "the manifest of another run": (resealed("manifest.json", run="smoke/run_x"), "holds the manifest of smoke/run_x"),
    "a manifest without files": (resealed("manifest.json", files=None), "cannot be verified (KeyError: 'files')"),
    "a manifest of other steps": (resealed("manifest.json", steps=["gate"]), "the manifest ['gate']"),
    "another earlier record": (earlier_edited, "read another record imported/cycle3/caveats than the one"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_to_a_run_is_found(run: Run, damage: Damage, said: str) -> None:
    damage(run)
    problems = problems_of(run)
    assert any(said in problem for problem in problems), problems


def test_each_damaged_file_is_one_problem(run: Run) -> None:
    for name in ("results.json", "records/gate.json", "journal.json"):
        (run.path / name).write_text("{}\n", encoding="utf-8")
    assert len(problems_of(run)) == 3


def beside(*names: str) -> Damage:
    """Files in the folder of evidence; names that end in a slash are folders."""

    def damage(run: Run) -> None:
        for name in names:
            path = evidence(run) / name
            path.mkdir(parents=True) if name.endswith("/") else path.write_text("x", encoding="utf-8")

    return damage


STRAYS: dict[str, tuple[Damage, str]] = {
    "a file beside the cycles": (beside("report.png"), "report.png belongs to no run"),
    "a file beside the runs": (beside("smoke/README.md"), "smoke/README.md belongs to no run"),
    "a hidden file beside the runs": (beside("smoke/.notes"), "smoke/.notes belongs to no run"),
    "a notebook of a cycle without runs": (beside("final/", "final/x.ipynb"), "final/x.ipynb belongs to no run"),
    "a folder that is no run": (beside("smoke/old/"), "smoke/old belongs to no run"),
    "a run that is not named as one": (beside("smoke/run_best/"), "smoke/run_best is not named as a run is"),
    "a file beside the imports": (beside("imported/x.json"), "imported/x.json belongs to no run"),
    "a link beside the cycles": (lambda run: (evidence(run) / "x").symlink_to(run.path.parent), "x belongs to no run"),
}


@pytest.mark.parametrize(("damage", "said"), STRAYS.values(), ids=STRAYS.keys())
def test_what_lies_beside_runs_is_found(run: Run, damage: Damage, said: str) -> None:
    damage(run)
    [problem] = problems_beside(evidence(run))
    assert said in problem


def test_files_that_come_and_go_during_a_run_are_no_problem(run: Run) -> None:
    beside("smoke/.lock")(run)
    added("progress.json")(run)
    assert problems_beside(evidence(run)) + problems_of(run) == []


def test_an_unfinished_run_is_a_problem_where_the_front_page_shows_it_or_git_tracks_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = evidence(run).parent
    monkeypatch.setattr(verification, "REPOSITORY", root)
    monkeypatch.setattr(code, "REPOSITORY", root)
    (run.path / "manifest.json").unlink()
    assert problems_of(run) == []
    (root / "index.md").write_text(f"Run {run.name}.\n", encoding="utf-8")
    [problem] = problems_of(run)
    assert problem == f"{run.name} has no manifest, so it is unfinished, but it is committed or on the front page"
    (root / "index.md").unlink()
    for arguments in (["init", "--quiet"], ["add", "evidence"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    assert problems_of(run) == [problem]


def test_a_changed_json_file_that_git_has_is_reported_with_the_value_that_differs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = evidence(run).parent, run.path / "records" / "frontier.json"
    monkeypatch.setattr(verification, "REPOSITORY", root)
    monkeypatch.setattr(verification, "file_at", lambda commit, name: committed)
    committed = path.read_text(encoding="utf-8")
    data = read_json(path)
    data["tables"]["members"][1]["explained_variance"] = 0.99
    write_json(path, data)
    [problem] = problems_of(run)
    assert "frontier.json was changed after it was written (tables.members.1.explained_variance is 0.99, and" in problem


def test_the_command_verifies_without_numpy(made: Run) -> None:
    script = (
        "import sys, atexit; from husai_lib.cli import main;"
        "atexit.register(lambda: print({'numpy', 'nbformat', 'IPython', 'torch'} & set(sys.modules)));"
        "main(['verify', '--evidence', sys.argv[1]])"
    )
    command = [sys.executable, "-c", script, str(evidence(made))]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "set()"
    assert made.name in said


def test_a_copy_of_a_run_under_another_name_is_found(run: Run) -> None:
    other = run.path.with_name("run_20200101T000000Z")
    shutil.copytree(run.path, other)
    assert problems_of(Run(other)) == [f"{other} holds the manifest of {run.name}"]
