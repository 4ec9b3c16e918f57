"""The library's layers: each module imports only from its own layer and those above it."""

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

LAYERS = {
    1: "errors version",
    2: "files catalogue sections hyperparameters conditions params strict_yaml cache records evidence intervals",
    3: "candidates ranking selection gates criteria decisions earlier json_parts earlier_records earlier_gates "
    "earlier_stress caveats replay audit recomputed shown figures tables sentences",
    4: "language_model texts activations architectures logistic matching tasks randomness",
    5: "stack training probing contrastive width_study evaluation baselines stress saebench_job upload_job",
    6: "execution cycle cli export saebench site webpages",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
MAY_IMPORT = {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 2, 3, 4}, 5: {1, 2, 3, 4, 5}, 6: {1, 2, 3, 6}}
HEAVY = {"torch", "sae_lens", "transformer_lens", "transformers", "sae_probes", "numba"}
NOTEBOOK_STACK = {"husai_lib", "IPython", "matplotlib", "numpy", "pandas", "scipy"}
LIBRARY = REPOSITORY / "husai_lib"
FILES = sorted(p for p in LIBRARY.rglob("*.py") if p != LIBRARY / "__init__.py")


def module_of(path: Path) -> str:
    """The name in LAYERS that a file belongs to: its module, or the package it lies in."""
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


def library_modules(source: str) -> set[str]:
    inner = {name.split(".")[1] for name in imports(source) if name.startswith("husai_lib.")}
    return {"evidence" if name == "open_step" else "version" if name == "__version__" else name for name in inner}


def test_imports_are_found_in_every_form() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from husai_lib import tables\n    import husai_lib.files as g"
    assert imports(source) == {"a.b", "c.d", "husai_lib.report.tables", "husai_lib.files"}
    assert library_modules(source) == {"tables", "files"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_a_module_has_a_layer_and_imports_only_from_layers_it_may(path: Path) -> None:
    layer = LAYER[module_of(path)]
    source = path.read_text(encoding="utf-8")
    used = {name: LAYER[name] for name in library_modules(source)}
    assert set(used.values()) <= MAY_IMPORT[layer], used
    if layer not in {4, 5}:
        assert not {name.split(".")[0] for name in imports(source)} & HEAVY


def test_modules_do_not_import_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(module_of(path), set()).update(library_modules(path.read_text()) - {module_of(path)})
    TopologicalSorter(graph).prepare()


def test_every_architecture_has_its_module() -> None:
    if (LIBRARY / "architectures" / "__init__.py").exists():
        assert all((LIBRARY / "architectures" / f"{name}.py").exists() for name in ARCHITECTURES)


def test_the_layers_without_torch_load_without_torch() -> None:
    names = [f"husai_lib.{p.stem}" for p in FILES if LAYER[module_of(p)] not in {4, 5}]
    script = f"import sys, {', '.join(names)}; assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_imports_only_the_library_and_the_scientific_stack(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    used = {name.split(".")[0] for name in imports(code)}
    assert used <= NOTEBOOK_STACK | sys.stdlib_module_names, used
