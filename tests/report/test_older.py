"""A run that another version of the library made is audited by that version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forging import change_record

from husai_lib.evidence.code import CHANGED, checkout_of, git_commit
from husai_lib.evidence.runs import Run, find_run
from husai_lib.files import REPOSITORY
from husai_lib.report import audit as audits
from husai_lib.report.checks import Audit


@pytest.fixture
def committed(tmp_path: Path) -> Run:
    """A copy of the newest committed smoke run, with the imports that it reads beside it."""
    run = find_run(REPOSITORY / "evidence", "smoke")
    shutil.copytree(run.path, tmp_path / "evidence" / run.name)
    shutil.copytree(REPOSITORY / "evidence" / "imported", tmp_path / "evidence" / "imported")
    return Run(tmp_path / "evidence" / run.name)


def made_here(run: Run) -> bool:
    """Whether the history of this checkout holds the commit of the run."""
    with checkout_of(run.attempts[-1]["code"]["git_commit"] or "none") as folder:
        return folder is not None


def test_a_run_of_this_library_is_audited_by_it(committed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "library_hash", lambda: committed.attempts[-1]["code"]["library_sha256"])
    monkeypatch.setattr(audits, "audit_run", lambda _: Audit(checked=7))
    assert audits.audit_as_made(committed) == Audit(checked=7)


def test_a_run_of_a_commit_that_is_not_here_is_audited_by_this_library(
    committed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = committed.attempts[-1]["code"] | {"git_commit": "0" * 40}
    monkeypatch.setattr(Run, "attempts", [{"code": journal}])
    monkeypatch.setattr(audits, "library_hash", lambda: "another")
    monkeypatch.setattr(audits, "audit_run", lambda _: Audit(checked=7))
    assert audits.audit_as_made(committed) == Audit(checked=7)


def test_only_commits_of_the_checked_out_history_are_checked_out() -> None:
    commit = (git_commit() or "").removesuffix(CHANGED)
    if not commit:
        pytest.skip("this is no git checkout")
    with checkout_of(commit) as folder:
        assert folder is not None
        assert (folder / "husai_lib" / "cli.py").is_file()
        checkout = folder
    assert not checkout.exists()
    with checkout_of("0" * 40) as folder:
        assert folder is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_code_of_its_commit_finds_nothing_in_an_older_run_and_a_forged_number_in_it(
    committed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not made_here(committed):
        pytest.skip("the history of this checkout does not hold the commit of the smoke run")
    monkeypatch.setattr(audits, "library_hash", lambda: "another")
    commit = committed.attempts[-1]["code"]["git_commit"]
    audit = audits.audit_as_made(committed)
    assert (audit.problems, audit.by) == ([], commit)
    assert audit.checked > 1000
    assert str(audit).endswith(f"no problem; by the code of commit {commit[:12]}, which made it")

    change_record(committed, "frontier", lambda record: record["tables"]["groups"][0].update(pwmcc=0.123))
    forged = audits.audit_as_made(committed)
    assert [problem for problem in forged.problems if problem.startswith("pwmcc of frontier/groups")]
