"""The house: which room may import which, and that the judging wing does without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from husai_lib.files import REPOSITORY
from husai_lib.params.hyperparameters import ARCHITECTURES

LIBRARY = REPOSITORY / "husai_lib"
GROUND = {"errors", "files", "randomness", "intervals", "version"}
BELOW: dict[str, set[str]] = {
    "params": set(),
    "evidence": {"params"},
    "tasks": {"params", "evidence"},
    "activations": {"params", "evidence", "tasks"},
    "saes": {"params", "evidence", "tasks", "activations"},
    "measures": {"params", "evidence", "tasks", "activations", "saes"},
    "decisions": {"params", "evidence"},
    "earlier": {"params", "evidence", "decisions"},
    "report": {"params", "evidence", "decisions", "earlier"},
    "cycle": {"params", "evidence", "decisions", "earlier", "report"},
}
"""The rooms that each room may import; a wing never imports the other."""
MEASURING = {"activations", "saes", "measures"}
HEAVY = {"torch", "sae_lens", "transformer_lens", "transformers", "sae_probes", "numba"}
NOTEBOOK_STACK = {"husai_lib", "IPython", "matplotlib", "numpy", "pandas", "scipy"}
FILES = sorted(LIBRARY.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room a file lies in; for a file of the ground floor its own name."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(source: str) -> set[str]:
    """Dotted names of everything a source text imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(source: str) -> set[str]:
    """The rooms and ground modules that a source text imports."""
    inner = {name.split(".")[1] for name in imports(source) if name.startswith("husai_lib.")}
    return {"evidence" if name == "open_step" else "version" if name == "__version__" else name for name in inner}


def test_imports_are_found_in_every_form() -> None:
    source = (
        "import a.b\nfrom c import d\ndef f():\n    from husai_lib import files\n    import husai_lib.report.site as g"
    )
    assert imports(source) == {"a.b", "c.d", "husai_lib.files", "husai_lib.report.site"}
    assert rooms_of(source) == {"files", "report"}


def test_the_ground_floor_holds_five_files_and_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in FILES} == {*GROUND, *BELOW, "cli", "options", "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_room_imports_only_from_below(path: Path) -> None:
    room, used = room_of(path), rooms_of(path.read_text(encoding="utf-8"))
    if room in GROUND:
        assert used <= GROUND
    elif room in BELOW:
        assert used <= GROUND | BELOW[room] | {room}
    if room not in MEASURING | {"tasks", "randomness"}:
        assert not {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"))} & HEAVY


@pytest.mark.parametrize("room", BELOW)
def test_a_room_says_what_comes_in_and_what_leaves(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((LIBRARY / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "In: " in docstring
    assert "Out: " in docstring
    assert len(docstring.splitlines()) <= 7


def test_modules_do_not_import_in_circles() -> None:
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        found = imports(path.read_text(encoding="utf-8"))
        graph[name] = {used if used in names else used.rpartition(".")[0] for used in found} & names - {name}
    TopologicalSorter(graph).prepare()


def test_every_architecture_has_its_module() -> None:
    assert all((LIBRARY / "saes" / "architectures" / f"{name}.py").exists() for name in ARCHITECTURES)


def test_the_judging_wing_loads_without_torch() -> None:
    paths = [path for path in FILES if room_of(path) not in MEASURING | {"tasks"} and path.stem != "__init__"]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    script = f"import sys, {', '.join(names)}; assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_only_computing_cells_of_a_notebook_know_the_measuring_wing(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        used = imports("".join(cell["source"]))
        assert {name.split(".")[0] for name in used} <= NOTEBOOK_STACK | sys.stdlib_module_names
        if "compute" not in cell["metadata"].get("tags", []):
            assert not rooms_of("".join(cell["source"])) & (MEASURING | {"tasks"})
