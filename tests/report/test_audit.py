"""An audit of a run that is what it says has no problem; what cannot be checked is counted; nothing hides a problem."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from forging import (
    NOTEBOOKS,
    change_record,
    copied,
    fast_audits,
    forge_hashes,
    rewrite,
    smoke_copy,
    write_notebook,
)
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from stand_ins import synthetic_run

from husai_lib.earlier.imports import import_earlier
from husai_lib.errors import EvidenceError
from husai_lib.evidence.runs import Run, find_imports, find_runs
from husai_lib.files import REPOSITORY, read_json, sha256_file, write_json
from husai_lib.report import cycle_pages, notebook_audit, recomputed, site
from husai_lib.report.audit import audit_run
from husai_lib.report.checks import Audit, Audited
from husai_lib.report.cycle_pages import banner_of
from husai_lib.report.notebook_audit import OTHER_NOTEBOOKS
from husai_lib.report.recomputed import check_cached
from husai_lib.report.site import check_front_page, check_site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        fast_audits(patch)
        yield smoke_copy(tmp_path_factory.mktemp("audited"))


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    return copied(made, tmp_path)


def evidence(run: Run) -> Path:
    return run.path.parent.parent


def test_a_run_that_is_what_it_says_has_no_problem(run: Run) -> None:
    assert audit_run(run).problems == []


def test_an_import_is_read_again_from_its_originals(run: Run, tmp_path: Path) -> None:
    [imported] = find_imports(evidence(run))
    assert audit_run(imported).problems == []
    shutil.rmtree(imported.path)
    originals = REPOSITORY / "evidence" / imported.name / "originals"
    edited = shutil.copytree(originals, tmp_path / "originals") / "release_policy.json"
    edited.write_text(edited.read_text(encoding="utf-8").replace("false", "true", 1), encoding="utf-8")
    import_earlier([edited.parent], imported.path.name, evidence(run))
    assert audit_run(imported).problems == []
    assert any("read another record imported/cycle3/release_policy" in problem for problem in audit_run(run).problems)


def test_a_changed_record_of_an_import_is_found(run: Run) -> None:
    [imported] = find_imports(evidence(run))
    path = imported.path / "records" / "caveats.json"
    data = read_json(path)
    data["tables"]["caveats"].pop()
    sha256 = write_json(path, data)
    entry = imported.journal["caveats"]
    imported.note_step("caveats", entry | {"files": {"records/caveats.json": sha256}})
    imported.write_manifest(**{name: value for name, value in imported.manifest().items() if name != "sha256"})
    assert any("number of caveats in record caveats" in problem for problem in audit_run(imported).problems)


def test_an_unfinished_run_that_nothing_shows_cannot_be_audited(run: Run) -> None:
    (run.path / "manifest.json").unlink()
    with pytest.raises(EvidenceError, match="is unfinished: it has no manifest"):
        audit_run(run)


def test_what_cannot_be_read_is_a_problem_and_hides_no_other(run: Run) -> None:
    def damage(record: dict[str, Any]) -> None:
        record["tables"]["members"][0] = {"condition": None}
        record["environment"]["python"] = "3.99"

    change_record(run, "frontier", damage)
    notebook = run.path / "notebooks" / "09_report.ipynb"
    notebook.write_text("no notebook", encoding="utf-8")
    forge_hashes(run)
    problems = "\n".join(audit_run(run).problems)
    assert "record frontier, table members: condition" in problems
    assert "09_report.ipynb is not a readable notebook" in problems
    assert "environment of record frontier: python is '3.99'" in problems


def test_a_difference_within_rounding_is_none(run: Run) -> None:
    def change(record: dict[str, Any]) -> None:
        record["tables"]["members"][0]["cebench_ceiling"] += 1e-12

    rewrite(run, "frontier", change)
    assert audit_run(run).problems == []


# ---------------------------------------------------------------------------------------------
# Notebooks
# ---------------------------------------------------------------------------------------------


def notebooks_with(folder: Path, change: Callable[[Any], object]) -> Path:
    """The checkout's notebooks with one of them, that of the gate, changed."""
    shutil.copytree(NOTEBOOKS, folder)
    notebook = nbformat.read(folder / "08_gate.ipynb", 4)
    change(notebook)
    write_notebook(folder / "08_gate.ipynb", notebook)
    return folder


def shown_by_user(notebook: Any) -> None:
    notebook.cells.append(new_code_cell("len(record.table('gates'))"))


def shown_in_run(run: Run, text: str) -> None:
    """The same cell in the executed notebook, with what it showed."""
    path = run.path / "notebooks" / "08_gate.ipynb"
    notebook = nbformat.read(path, 4)
    shown_by_user(notebook)
    notebook.cells[-1].outputs = [new_output("execute_result", {"text/plain": text}, execution_count=1)]
    write_notebook(path, notebook)
    forge_hashes(run)


def test_a_cell_that_a_user_adds_is_audited_without_an_entry_anywhere(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook_audit, "NOTEBOOKS", notebooks_with(tmp_path / "notebooks", shown_by_user))
    shown_in_run(run, "9")
    assert audit_run(run).problems == []
    edit(run.path / "notebooks" / "08_gate.ipynb", '"9"', '"8"')
    forge_hashes(run)
    [problem] = audit_run(run).problems
    assert problem.endswith("is '8' but must be '9'")


def test_notebooks_of_the_records_commit_are_held_to_hashes_and_not_executed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout has gone on: its notebook of the gate has another cell, which that commit's had not."""
    monkeypatch.setattr(notebook_audit, "NOTEBOOKS", notebooks_with(tmp_path / "notebooks", shown_by_user))
    source = (NOTEBOOKS / "08_gate.ipynb").read_text(encoding="utf-8")
    asked: list[tuple[str, str]] = []

    def file_at(commit: str, path: str) -> str | None:
        asked.append((commit, path))
        return source if path == "notebooks/08_gate.ipynb" else None

    monkeypatch.setattr(notebook_audit, "file_at", file_at)
    change_record(run, "gate", lambda record: record["environment"]["code"].update(git_commit="1234+changes"))
    audit = audit_run(run)
    assert audit.unchecked[OTHER_NOTEBOOKS] == 1
    assert asked == [("1234", "notebooks/08_gate.ipynb")]
    assert [problem for problem in audit.problems if "notebook" in problem] == []
    monkeypatch.setattr(notebook_audit, "file_at", lambda commit, path: None)
    assert any("number of cells of 08_gate.ipynb" in problem for problem in audit_run(run).problems)


def test_a_notebook_that_neither_the_checkout_nor_the_commit_has_is_a_problem(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook_audit, "file_at", lambda commit, path: None)
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    (tmp_path / "notebooks" / "09_report.ipynb").unlink()
    monkeypatch.setattr(notebook_audit, "NOTEBOOKS", tmp_path / "notebooks")
    [problem] = [p for p in audit_run(run).problems if "09_report" in p]
    assert problem == "09_report.ipynb is 'in the run' but must be 'a notebook of the checkout'"


def test_code_in_evidence_is_never_executed(run: Run, tmp_path: Path) -> None:
    trap = f"__import__('pathlib').Path({str(tmp_path / 'sprung')!r}).touch()"
    path = run.path / "notebooks" / "08_gate.ipynb"
    original = nbformat.read(path, 4)

    def trapped(change: Callable[[Any], object]) -> Audit:
        notebook = nbformat.from_dict(json.loads(json.dumps(original)))
        change(notebook)
        write_notebook(path, notebook)
        forge_hashes(run)
        return audit_run(run)

    def everywhere(notebook: Any) -> None:
        for cell in notebook.cells:
            cell.source = f"{cell.source}\n{trap}"

    injected = next(cell for cell in original.cells if "injected-parameters" in cell.metadata.tags)
    assert trapped(lambda notebook: notebook.cells.insert(0, new_code_cell(trap))).problems
    assert trapped(lambda notebook: notebook.cells.append(new_markdown_cell(trap))).problems
    assert trapped(everywhere).problems
    place = original.cells.index(injected)
    assert trapped(lambda notebook: notebook.cells[place].update(source=f"{injected.source}\n{trap}")).problems
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------------------------------------
# What the cache holds
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose weights are in the cache."""
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    return synthetic_run(tmp_path / "evidence")


SAES, BANKS, PAIRS = 9 + 6 + 9, 1, 6 + 3 + 9
"""SAEs of members, of the confirmation and of controls; banks; pairs of seeds of two conditions, of the confirmed one
and of three trained controls."""


def cached(run: Run) -> Audit:
    audit = Audit()
    audit.take(check_cached(Audited(run)), "a cache entry")
    return audit


def test_weights_in_the_cache_have_their_hashes_and_pairs_follow_from_them(trained: Run) -> None:
    audit = cached(trained)
    assert (audit.problems, audit.unchecked, audit.checked) == ([], {}, SAES + BANKS + PAIRS)


def test_weights_that_are_not_here_are_counted(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(trained.path / "nowhere"))
    audit = cached(trained)
    assert (audit.problems, audit.unchecked) == ([], {"cached files not here": SAES + BANKS + PAIRS})


def test_pairs_of_wide_saes_are_counted(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputed, "WIDEST", 63)
    audit = cached(trained)
    assert (audit.problems, audit.unchecked) == ([], {recomputed.TOO_WIDE: PAIRS})


def test_a_flipped_bit_of_weights_or_activations_is_found(trained: Run, tmp_path: Path) -> None:
    stored = [*tmp_path.glob("cache/saes/*/*.safetensors"), *tmp_path.glob("cache/banks/*/*.npy")]
    assert len(stored) == SAES + BANKS
    for path in stored[:2] + stored[-1:]:
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 4]))
        assert len(cached(trained).problems) == 1
        path.write_bytes(original)


def test_a_shard_of_a_bank_that_is_damaged_or_lacking_is_found_or_counted(trained: Run, tmp_path: Path) -> None:
    [bank] = tmp_path.glob("cache/banks/*")
    shard = bank.with_name("a" * 64)
    shutil.copytree(bank, shard)
    write_json(bank / "shards.json", [shard.name])
    assert cached(trained).problems == []
    [rows] = shard.glob("*.npy")
    rows.write_bytes(rows.read_bytes()[:-1])
    assert cached(trained).problems == [f"{rows} is damaged; delete {shard} and run again"]
    shutil.rmtree(shard)
    assert (cached(trained).problems, cached(trained).unchecked) == ([], {"cached files not here": BANKS})


def test_other_weights_under_the_same_key_are_found(trained: Run, tmp_path: Path) -> None:
    """An entry that agrees with itself but not with the record."""
    entry = next(tmp_path.glob("cache/saes/*/entry.json"))
    weights = entry.parent / "sae_weights.safetensors"
    other = next(path for path in tmp_path.glob(f"cache/saes/*/{weights.name}") if path != weights)
    weights.write_bytes(other.read_bytes())
    write_json(entry, read_json(entry) | {"files": {weights.name: sha256_file(weights)}})
    assert any(problem.startswith("SHA-256 of ") for problem in cached(trained).problems)


def test_a_pair_that_the_weights_do_not_have_is_found(trained: Run) -> None:
    path = trained.path / "records" / "stress.json"
    data = read_json(path)
    pair = next(row for row in data["tables"]["pairs"] if row["of"] == "transcoder")
    pair["pwmcc"] += 0.001
    trained.note_step("stress", {"files": {"records/stress.json": write_json(path, data)}, "key": ""})
    [problem] = cached(trained).problems
    assert problem.startswith("PW-MCC of transcoder, seeds 3 and 4 is 0.741 but must be 0.74")


# ---------------------------------------------------------------------------------------------
# The front page and the site
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(made: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with this run and an older one, its front page, a README with a picture, and a site."""
    root = tmp_path_factory.mktemp("checkout")
    run = copied(made, root)
    older = Run(shutil.copytree(run.path, run.path.with_name("run_20200101T000000Z")))
    older.write_manifest(**{name: value for name, value in run.manifest().items() if name != "sha256"})
    picture = f"![Stability](evidence/{run.name}/figures/stability.png)\n"
    (root / "README.md").write_text(f"# HUSAI\n\n{picture}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        as_checkout(root, patch)
        site.render(root / "evidence", root / "site")
    return root


def as_checkout(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a folder pass for this checkout, on a machine without Quarto."""
    patch.setattr(site, "REPOSITORY", root)
    patch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def checkout(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that checkout, to be changed."""
    root = shutil.copytree(rendered, tmp_path / "checkout")
    as_checkout(root, monkeypatch)
    return root


def front(checkout: Path) -> list[str]:
    return check_front_page(checkout / "evidence").problems


def pages(checkout: Path) -> list[str]:
    return check_site(checkout / "site", checkout / "evidence").problems


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def another_run(checkout: Path) -> None:
    """The older run on the front page, without the sentence that says so."""
    older = next(run for run in find_runs(checkout / "evidence") if run.path.name.startswith("run_2020"))
    shown = site.shown_runs(checkout / "evidence")
    text = site.front_page(shown, next(one for one in shown if one.run.path == older.path))
    [line] = [line for line in text.splitlines() if "not the newest complete run" in line]
    (checkout / "index.md").write_text(text.replace(line, "This is the newest complete run."), encoding="utf-8")


ON_FRONT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a verdict": (lambda root: edit(root / "index.md", "**Not releasable**", "**Releasable**"), "line of index.md"),
    "no front page": (lambda root: (root / "index.md").unlink(), "index.md is there is False"),
    "no complete run": (lambda root: [path.unlink() for path in root.glob("evidence/smoke/*/manifest.json")],
                        "complete runs for the front page is False"),
    "another run than the newest": (another_run, "line of index.md"),
    "a picture that no run has": (lambda root: edit(root / "README.md", "stability", "better"), "picture smoke/run_"),
    "the picture of an older run": (lambda root: edit(root / "README.md", find_runs(root / "evidence")[-1].path.name,
                                                      "run_20200101T000000Z"), "run of the picture in README.md"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), ON_FRONT.values(), ids=ON_FRONT.keys())
def test_a_falsified_front_page_is_found(checkout: Path, change: Callable[[Path], object], said: str) -> None:
    assert front(checkout) == []
    change(checkout)
    assert any(problem.startswith(said) for problem in front(checkout)), front(checkout)


def test_an_older_run_on_the_front_page_is_no_problem_where_the_page_says_so(checkout: Path) -> None:
    site.render(checkout / "evidence", checkout / "site", "run_20200101T000000Z")
    assert "**This is not the newest complete run**" in (checkout / "index.md").read_text(encoding="utf-8")
    assert front(checkout) == []


def with_hashes(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Change a site and its own account of its hashes."""

    def changed(root: Path) -> None:
        change(root)
        about = read_json(root / "site" / site.ABOUT)
        write_json(root / "site" / site.ABOUT, about | {"pages": site.hashes_of(root / "site")})

    return changed


def page(root: Path, name: str) -> Path:
    return next((root / "site").rglob(name))


def verdict(root: Path) -> None:
    edit(root / "site" / "index.html", "Not releasable", "Releasable")


def newer_run(root: Path) -> None:
    newest = find_runs(root / "evidence")[-1].path
    shutil.copytree(newest, newest.with_name("run_29990101T000000Z"))


ON_SITE: dict[str, Callable[[Path], object]] = {
    "a verdict": verdict,
    "a verdict, with its hash": with_hashes(verdict),
    "a verdict, of a renderer that is not here": with_hashes(lambda root: (verdict(root), write_json(
        root / "site" / site.ABOUT, read_json(root / "site" / site.ABOUT) | {"renderer": "quarto"}))),
    "a page removed": with_hashes(lambda root: page(root, "07_stress.html").unlink()),
    "a page added": with_hashes(lambda root: shutil.copy(page(root, "index.html"), root / "site" / "more.html")),
    "the copy of a record": with_hashes(lambda root: edit(page(root, "gate.json"), "false", "true")),
    "a figure": with_hashes(lambda root: page(root, "controls.png").write_bytes(b"x")),
    "a run that came later": newer_run,
    "a run that is gone": lambda root: shutil.rmtree(find_runs(root / "evidence")[0].path),
    "no account": lambda root: (root / "site" / site.ABOUT).unlink(),
    "another account": lambda root: write_json(root / "site" / site.ABOUT, []),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", ON_SITE.values(), ids=ON_SITE.keys())
def test_a_falsified_site_is_found(checkout: Path, change: Callable[[Path], object]) -> None:
    change(checkout)
    assert pages(checkout)


def test_a_site_and_a_front_page_as_they_were_rendered_have_no_problem(checkout: Path) -> None:
    audit = check_site(checkout / "site", checkout / "evidence")
    assert (audit.problems, audit.unchecked) == ([], {})
    assert front(checkout) == []
    assert check_front_page(checkout / "evidence" / "smoke").checked == 0


def test_pages_of_other_notebooks_than_the_checkouts_say_so_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert banner_of(run) == ""
    monkeypatch.setattr(cycle_pages, "is_of_checkout", lambda run, step: step != "gate")
    banner = banner_of(run)
    assert "the notebooks of the steps gate have changed since" in banner
    shown = site.shown_runs(run.path.parent.parent)
    text = site.front_page(shown, site.chosen_run(shown, run.path.parent.parent, run.name))
    assert text.index("Not releasable") < text.index(banner) < text.index("## All cycles")
    assert re.sub("<[^>]+>", "", shown[0].pages[0].body).strip().startswith(banner.replace("`", ""))
