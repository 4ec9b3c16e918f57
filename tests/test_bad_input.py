"""What a user can get wrong: one sentence on stderr with a remedy, the right exit code, at once, nothing touched.

What happens when a run is killed or interrupted: see faults/.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_ins import SMOKE, Said, husai, short_cycle, smoke_data, write_notebooks, write_params

from husai_lib.cycle.run import only_run_of

TEXT = SMOKE.read_text(encoding="utf-8")
HEAVY = {"torch", "transformers", "sae_lens", "transformer_lens", "papermill"}
"""Packages that take seconds to import: a mistake is told without them."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with evidence of an earlier run, and the notebooks of the short cycle."""
    short_cycle(monkeypatch, tmp_path / "notebooks")
    earlier = tmp_path / "evidence" / "smoke" / "run_20200101T000000Z"
    earlier.mkdir(parents=True)
    (earlier / "parameters.json").write_text("{}\n")
    return tmp_path


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(place: Path, code: int, words: tuple[str, ...], *arguments: Any) -> Said:
    """Run a command that must be refused: in one line with `words`, evidence untouched."""
    before = listing(place / "evidence")
    said = husai(*arguments, "--evidence", place / "evidence")
    one_sentence(said, code, words)
    assert listing(place / "evidence") == before
    return said


def one_sentence(said: Said, code: int, words: tuple[str, ...]) -> None:
    assert said.code == code, said.err
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("husai: ")
    assert "Traceback" not in said.err
    for word in words:
        assert word in lines[0], lines[0]


def changed(**changes: Any) -> Callable[[], dict[str, Any]]:
    """The smoke cycle with `section__key` values changed."""

    def make() -> dict[str, Any]:
        data = smoke_data()
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                data[section] = data.get(section, {}) | {key: value}
            else:
                data[section] = value
        return data

    return make


VALUES: dict[str, tuple[Callable[[], dict[str, Any]], tuple[str, ...]]] = {
    "misspelt section": (changed(acivations={}), ("key 'acivations' is unknown", "the nearest is 'activations'")),
    "misspelt key": (
        changed(sae__learning_rat=1.0),
        ("sae: key 'learning_rat' is unknown", "the nearest is 'learning_rate'"),
    ),
    "misspelt key of a condition": (
        changed(conditions=[{"architecture": "standard", "l1_coeficient": 1.0}]),
        ("conditions.0: standard key", "'l1_coeficient'", "the nearest is 'l1_coefficient'"),
    ),
    "missing section": (lambda: {k: v for k, v in smoke_data().items() if k != "model"}, ("model is missing",)),
    "text for a number": (changed(sae__k="eight"), ("sae.k = 'eight'", "valid integer")),
    "number for a list": (changed(seeds=3), ("seeds = 3", "list")),
    "a fraction of a latent": (changed(sae__d_sae=64.0), ("sae.d_sae = 64.0", "integer")),
    "yes for a number": (changed(sae__d_sae=True), ("sae.d_sae = True", "integer")),
    "number for a section": (changed(gates=1), ("gates = 1",)),
    "NaN": (changed(gates__max_ood_drop=float("nan")), ("gates.max_ood_drop = nan", "finite")),
    "infinity": (changed(sae__learning_rate=float("inf")), ("sae.learning_rate = inf", "finite")),
    "zero latents": (changed(sae__d_sae=0), ("sae.d_sae = 0", "greater than 0")),
    "negative coefficient": (
        changed(conditions=[{"architecture": "standard", "l1_coefficient": -1.0}]),
        ("conditions.0.l1_coefficient = -1.0", "greater than or equal to 0"),
    ),
    "k above d_sae": (changed(sae__k=65), ("k = 65 exceeds d_sae = 64",)),
    "less than a batch": (changed(sae__training_samples=100), ("training_samples = 100", "512")),
    "no seed": (changed(seeds=[]), ("seeds = []", "at least 1 item")),
    "a seed twice": (changed(seeds=[0, 1, 1]), ("seed 1 is given twice",)),
    "a negative seed": (changed(seeds=[0, -1]), ("seeds.1 = -1",)),
    "more seeds needed than there are": (changed(selection={"min_seeds": 4}), ("min_seeds = 4", "3 seeds")),
    "selection without a weight": (
        changed(selection={"weights": {"saebench": 0.0, "cebench": 0.0, "train_ev": 0.0}}),
        ("selection: weights are all 0",),
    ),
    "a bound of one seed": (changed(selection={"min_seeds": 1}), ("min_seeds must be at least 2",)),
    "unknown choice": (changed(selection={"interval": "z"}), ("selection.interval = 'z'", "'t'")),
    "no conditions": (changed(conditions=[]), ("this cycle trains no 'frontier'",)),
    "unknown architecture": (
        changed(conditions=[{"architecture": "topkk"}]),
        ("'topkk' is unknown", "the nearest is 'topk'"),
    ),
    "a condition twice": (
        changed(conditions=[{"architecture": "topk"}, {"architecture": "topk"}]),
        ("condition 'topk' is given twice",),
    ),
    "a condition's name as a path": (
        changed(conditions=[{"architecture": "topk", "name": "../topk"}]),
        ("conditions.0.name = '../topk'", "pattern"),
    ),
    "a cycle's name as a path": (changed(cycle="../../etc"), ("cycle = '../../etc'", "pattern")),
    "unknown data set": (changed(texts__training=["161_agnews"]), ("'161_agnews' is unknown", "'161_agnews_0'")),
    "no shifted set": (changed(texts__ood=["100_news_fake"]), ("texts.ood", "'100_news_fake'", "shifted")),
    "one data set in two roles": (
        changed(texts__held_out=["157_amazon_5star"]),
        ("texts: data set '157_amazon_5star' is given twice",),
    ),
    "a data set twice": (changed(texts__training=["161_agnews_0"] * 2), ("data set '161_agnews_0' is given twice",)),
    "no stories": (changed(texts__stories="nowhere.jsonl"), ("texts.stories", "'nowhere.jsonl'", "'offline'")),
    "unknown hook": (changed(activations__hook_name="blocks.0.resid"), ("activations.hook_name", "hook_resid_post")),
    "layer beyond the model": (
        changed(activations__hook_name="blocks.99.hook_resid_post"),
        ("blocks.99.hook_resid_post is beyond the model's 2 layers, 0 to 1",),
    ),
    "no model file": (changed(model__name="./nowhere.gguf"), ("model.name", "no file or folder at './nowhere.gguf'")),
    "no model folder": (
        changed(model__name="random:/nowhere"),
        ("model.name", "no file or folder at 'random:/nowhere'"),
    ),
    "a folder that is no model": (changed(model__name="./params"), ("model.name = './params'", "Hugging Face folder")),
    "no such package": (changed(model__name="package:nowhere/x.gguf"), ("package 'nowhere' is not installed",)),
    "no such file in a package": (
        changed(model__name="package:husai_lib/x.gguf"),
        ("no file or folder at 'package:husai_lib/x.gguf'",),
    ),
    "bos not stated": (changed(model={"name": "gpt2"}), ("model.prepend_bos is missing",)),
    "a baseline of that name": (changed(baseline="trian"), ("baseline: 'trian' is no baseline", "write train")),
    "no such folder of a baseline": (
        changed(baseline={"folder": "./nowhere"}),
        ("baseline.folder: './nowhere' holds no cfg.json", "SAELens folder"),
    ),
    "a release without an id": (
        changed(baseline={"release": "gpt2-small-res-jb"}),
        ("baseline: release = 'gpt2-small-res-jb' names no SAE without sae_id",),
    ),
    "an id without a release": (
        changed(baseline={"sae_id": "x"}),
        ("baseline: sae_id = 'x' names no SAE without release",),
    ),
    "an empty release": (changed(baseline={"release": "", "sae_id": "x"}), ("baseline.release = ''",)),
    "too few permutations": (changed(contrastive={"permutations": 10}), ("contrastive.permutations = 10", "100")),
}


@pytest.mark.parametrize(("make", "words"), VALUES.values(), ids=VALUES.keys())
def test_a_wrong_value_is_named_with_its_file_and_key(
    place: Path, make: Callable[[], dict[str, Any]], words: tuple[str, ...]
) -> None:
    path = write_params(place / "p.yaml", make())
    refused(place, 2, (str(path), *words), "run", path)


FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("holds no mapping", "params/quickstart.yaml")),
    "only comments": (b"# nothing\n", ("holds no mapping",)),
    "a list at the top": (b"- a\n- b\n", ("holds no mapping",)),
    "not UTF-8": (b"cycle: caf\xe9\n", ("not UTF-8",)),
    "UTF-16": (TEXT.encode("utf-16"), ("not UTF-8",)),
    "a zero byte": (b"cycle: a\x00b\n", ("not valid YAML",)),
    "tabs": (b"model:\n\tname: gpt2\n", ("not valid YAML", "line 2")),
    "an open bracket": (b"seeds: [0, 1\n", ("not valid YAML",)),
    "two documents": (b"a: 1\n---\nb: 2\n", ("not valid YAML",)),
    "deep nesting": (b"a: " + b"[" * 5000 + b"]" * 5000, ("nested too deeply", "flat")),
    "a key twice": (TEXT.encode() + b"cycle: other\n", ("line", "'cycle' is given twice")),
    "a nested key twice": (b"sae:\n  k: 1\n  k: 2\n", ("line 3", "'k' is given twice")),
    "code as a key": (b'"x\\nimport os": 1\n', ("line 1", "import os'", "identifiers")),
    "a number as a key": (b"1: 2\n", ("line 1", "identifiers")),
    "a merge key": (b"<<: {a: 1}\n", ("line 1", "'<<'", "identifiers")),
    "a tag": (b"cycle: !!python/object/apply:os.system ['true']\n", ("line 1", "tags", "plain value")),
    "an anchor": (b"a: &a [1]\nb: *a\n", ("line 1", "anchors, aliases and tags")),
    "a bomb of aliases": (
        b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 8))
                                                for n in range(98, 112)),
        ("line 1", "anchors, aliases and tags"),
    ),
    "an exponent without a point": (
        TEXT.replace("learning_rate: 3.0e-3", "learning_rate: 3e-3", 1).encode(),
        ("sae.learning_rate = '3e-3' is text in YAML", "decimal point"),
    ),
    "infinity in YAML": (TEXT.replace("max_ood_drop: 0.10", "max_ood_drop: .inf").encode(), ("gates.max_ood_drop",)),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_parameter_file_is_named(place: Path, content: bytes, words: tuple[str, ...]) -> None:
    path = place / "p.yaml"
    path.write_bytes(content)
    refused(place, 2, (str(path), *words), "run", path)


SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no value": ("sae.k", ("--set sae.k", "key=value")),
    "no key": ("=3", ("--set =3", "key=value")),
    "an empty part": ("sae..k=3", ("--set sae..k=3", "key=value")),
    "a misspelt key": ("sae.kk=3", ("sae: key 'kk' is unknown", "the nearest is 'k'")),
    "a wrong type": ("sae.k=many", ("sae.k = 'many'",)),
    "nothing": ("sae.k=", ("sae.k = None",)),
    "a key below a value": ("cycle.name=x", ("'cycle' has no keys of its own",)),
    "broken YAML": ("seeds=[0", ("--set seeds=[0", "not valid YAML")),
    "a second key smuggled in": ("sae.k=1\nx: 2", ("--set sae.k=1", "not valid YAML")),
    "an alias": ("sae.k=*a", ("anchors, aliases and tags",)),
}


@pytest.mark.parametrize(("assignment", "words"), SETS.values(), ids=SETS.keys())
def test_a_wrong_assignment_is_named(place: Path, assignment: str, words: tuple[str, ...]) -> None:
    refused(place, 2, words, "run", SMOKE, "--set", assignment)


USAGE: dict[str, tuple[tuple[Any, ...], int, tuple[str, ...]]] = {
    "no such file": (("run", "params/smok.yaml"), 2, ("params/smok.yaml: No such file", "params/quickstart.yaml")),
    "a folder": (("run", "params"), 2, ("params: Is a directory", "params/quickstart.yaml")),
    "a name too long": (("run", "a" * 5000), 2, ("File name too long",)),
    "no file named": (("run",), 2, ("Missing argument", "PARAMS", "--help")),
    "no jobs": (("run", SMOKE, "--jobs", "0"), 2, ("--jobs", "1")),
    "jobs in words": (("run", SMOKE, "--jobs", "two"), 2, ("--jobs", "integer")),
    "unknown device": (("run", SMOKE, "--device", "tpu"), 2, ("--device", "'tpu'", "'cuda'")),
    "unknown option": (("run", SMOKE, "--resum"), 2, ("--resum", "--resume")),
    "two files": (("run", SMOKE, SMOKE), 2, ("both of cycle smoke", "queue them apart")),
    "no run to show": (("show", "nothing"), 1, ("no run is called 'nothing'", "husai ls")),
    "no run to verify": (("verify", "nothing"), 1, ("no run is called 'nothing'", "husai ls")),
    "no run to render": (("render", "nothing"), 1, ("no run is called 'nothing'", "husai ls")),
    "an unfinished run to verify": (("verify", "smoke"), 1, ("unfinished", "--resume")),
}


@pytest.mark.parametrize(("arguments", "code", "words"), USAGE.values(), ids=USAGE.keys())
def test_a_wrong_command_line_is_one_sentence(
    place: Path, arguments: tuple[Any, ...], code: int, words: tuple[str, ...]
) -> None:
    refused(place, code, words, *arguments)


def test_an_unknown_command_is_one_sentence() -> None:
    one_sentence(husai("runn", SMOKE), 2, ("No such command 'runn'",))


def test_no_runs_at_all_says_how_to_make_one(tmp_path: Path) -> None:
    one_sentence(husai("show", "--evidence", tmp_path), 1, ("holds no runs", "husai run params/smoke.yaml"))


def test_a_model_file_that_is_none_is_named(place: Path) -> None:
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 100, b"not a model" * 100):
        (place / "m.gguf").write_bytes(content)
        path = write_params(place / "p.yaml", changed(model__name=str(place / "m.gguf"))())
        refused(place, 2, ("model.name", "m.gguf", "no complete GGUF file"), "run", path)


# The machine


def test_a_nearly_full_disk_is_told_before_anything_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    refused(place, 1, ("evidence has 0.00 GB free", "the cycle needs", "--evidence", "HUSAI_CACHE"), "run", SMOKE)


def test_a_disk_that_fills_up_while_writing_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = husai("run", SMOKE, "--evidence", place / "evidence")
    one_sentence(said, 1, ("parameters.json cannot be written (No space left on device)", "free space", "--resume"))
    left = [p.name for p in (place / "evidence").rglob("*") if p.is_file() and p.name != ".lock"]
    assert left == ["parameters.json"]  # the earlier run's; no half-written file


def test_read_only_evidence_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and "evidence" in str(path)))
    refused(place, 1, ("evidence cannot be written", "read-only", "--evidence"), "run", SMOKE)


def test_a_folder_that_turns_out_read_only_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(place, 1, (".lock cannot be written (Read-only file system)", "another folder"), "run", SMOKE)


def test_evidence_that_is_a_file_is_told(place: Path) -> None:
    said = husai("run", SMOKE, "--evidence", write_params(place / "file", {}))
    one_sentence(said, 1, ("no folder", "--evidence"))


def test_a_second_run_of_the_cycle_is_refused_at_once(place: Path) -> None:
    with only_run_of("smoke", place / "evidence"):
        refused(place, 1, ("'smoke' is being run by another process",), "run", SMOKE)


def test_a_missing_notebook_is_told(place: Path) -> None:
    (place / "notebooks" / "08_gate.ipynb").unlink()
    refused(place, 1, ("08_gate.ipynb is no notebook that can be read", "restore it"), "run", SMOKE)


def test_other_parameters_with_resume_are_refused(place: Path) -> None:
    refused(place, 2, ("cycle differs", "parameters.json", "without --resume"), "run", SMOKE, "--resume")


def test_damaged_evidence_is_exit_code_4(place: Path) -> None:
    [run] = (place / "evidence" / "smoke").iterdir()
    (run / "manifest.json").write_text('{"files": NaN}\n')
    refused(place, 4, ("manifest.json is damaged", "verification found 1 problem:"), "verify")


# Whole processes


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["run", "nowhere.yaml"], 2, "No such file"),
        (["run", str(SMOKE), "--set", "sae.k=65"], 2, "k = 65 exceeds d_sae = 64"),
        (["verify", "nothing"], 1, "no run"),
    ],
)
def test_the_installed_command_tells_a_mistake_before_it_imports_what_takes_seconds(
    arguments: list[str], code: int, word: str
) -> None:
    command = [sys.executable, "-X", "importtime", str(Path(sys.executable).parent / "husai"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines(keepends=True)
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    assert "husai_lib.cli" in imported
    assert not imported & HEAVY
    told = "".join(line for line in lines if not line.startswith("import time:"))
    one_sentence(Said(done.returncode, done.stdout, told), code, (word,))


def last_line(said: Said) -> Said:
    """What was said without the lines of progress before the failure."""
    progress = [line for line in said.err.splitlines() if line.startswith(("new run ", "resuming ", "step "))]
    return Said(said.code, said.out, "".join(f"{line}\n" for line in said.err.splitlines()[len(progress) :]))


@pytest.mark.slow
def test_a_killed_kernel_is_one_sentence_and_the_run_can_be_resumed(place: Path) -> None:
    write_notebooks(place / "notebooks", frontier="import os\nos.kill(os.getpid(), 9)")
    said = husai("run", SMOKE, "--evidence", place / "evidence")
    one_sentence(last_line(said), 1, ("step frontier", "the kernel died (out of memory?)", "--resume"))

    write_notebooks(place / "notebooks")
    said = husai("run", SMOKE, "--evidence", place / "evidence", "--resume")
    assert said.code == 0, said.err
    assert "step 1/3 activations: kept" in said.err
