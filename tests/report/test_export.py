"""What `husai export` writes and refuses, its model card, and the upload to the hub."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import stand_ins
import torch
import yaml
from forging import forge_hashes
from markdown_it import MarkdownIt
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY
from small_saes import random_sae, trained
from stand_ins import complete, synthetic_run

from husai_lib.errors import DataError, EvidenceError, GateError, HusaiError, IntegrityError, ParameterError
from husai_lib.evidence import cache
from husai_lib.evidence.cache import Entry
from husai_lib.evidence.runs import Run, find_run
from husai_lib.files import REPOSITORY, read_json, sha256_file, write_json
from husai_lib.measures.saebench import folder_subject
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.params.inputs import ModelParams
from husai_lib.report import export, tables
from husai_lib.report.export import model_card, push

FILES = {"README.md", "cfg.json", "release_policy.json", "sae_weights.safetensors"}


def saes(kind: str, name: str, file: str, make: Any = stand_ins._cached) -> Entry:
    """A real SAE of 32 dimensions and 64 latents for every stand-in of weights; its seed follows from the name."""
    if kind != "saes":
        return make(kind, name, file)
    seed = sum(map(ord, name))
    sae = random_sae(seed)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return trained(sae, seed).entry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A complete run that selected an SAE whose weights are in the cache, and that fails its gate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(stand_ins, "_cached", saes)
        yield synthetic_run(tmp_path_factory.mktemp("evidence"))


@pytest.fixture
def run(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run and its cache, to be changed."""
    evidence, own = tmp_path / "evidence", tmp_path / "cache"
    shutil.copytree(made.path.parent.parent, evidence)
    shutil.copytree(os.environ["HUSAI_CACHE"], own)
    monkeypatch.setenv("HUSAI_CACHE", str(own))
    return Run(evidence / made.name)


def test_a_candidate_with_a_consistency_objective_has_a_card() -> None:
    candidate = export.candidate_of(find_run(REPOSITORY / "evidence", "cycle7_small"))
    assert candidate.record.step == "consistency"
    card = export.model_card(candidate, {"architecture": "topk", "d_in": 576, "dtype": "float32"})
    assert candidate.member.condition == "a2_lambda_0_2"
    assert "| Training rows, repeats included | 491,520 |" in card
    assert f"The gate's intervals are over {len(candidate.parameters['confirmation']['seeds'])} seeds." in card


def exported(run: Run, folder: Path) -> Path:
    return export.export(run, folder, even_if_failed=True)


def selected(run: Run) -> dict[str, Any]:
    chosen: dict[str, Any] = run.record("selection").summary["selected"]
    return chosen


def change(run: Run, step: str, edit: Any) -> None:
    """Change a record and all that states its hash, as if the step had written it so."""
    path = run.path / "records" / f"{step}.json"
    data = read_json(path)
    edit(data)
    write_json(path, data)
    forge_hashes(run)
    complete(run)


def change_parameters(run: Run, **sections: Any) -> None:
    data = read_json(run.path / "parameters.json")
    write_json(run.path / "parameters.json", {name: value | sections.get(name, {}) if isinstance(value, dict) else value
                                              for name, value in data.items()})  # fmt: skip
    complete(run)


def pass_gates(data: dict[str, Any]) -> None:
    data["summary"] |= {"pass_all": True, "verdict": "Releasable: all 8 required gates pass."}
    for row in data["tables"]["gates"]:
        row["verdict"] = "pass"


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    assert found
    metadata = yaml.safe_load(found[1])
    assert huggingface_hub.ModelCard(card).data.to_dict() == metadata  # as the hub reads it
    return metadata, found[2]


def test_saelens_loads_what_was_exported_and_it_encodes_as_the_original(run: Run, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "new" / "sae")
    assert {path.name for path in folder.iterdir()} == FILES
    original = trained(random_sae(sum(map(ord, f"topk {selected(run)['seed']}"))))
    assert sha256_file(folder / "sae_weights.safetensors") == selected(run)["weights_sha256"] == original.weights_sha256
    rows = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    loaded = SAE.load_from_disk(folder, device="cpu")
    torch.testing.assert_close(loaded.encode(rows), original.sae.encode(rows), rtol=0, atol=0)
    assert (loaded.cfg.metadata.prepend_bos, loaded.cfg.metadata.model_name) == (True, None)  # it has random weights
    assert (folder / "release_policy.json").read_bytes() == (run.path / "release_policy.json").read_bytes()
    assert not list(folder.parent.glob(".*"))


def test_a_failed_candidate_is_refused_and_nothing_is_left(run: Run, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"failed the release gate: \d of 8 .*transcoder.*--even-if-failed") as refused:
        export.export(run, tmp_path / "new" / "sae")
    assert refused.value.exit_code == 3
    assert not (tmp_path / "new").exists()


def test_with_the_option_the_card_starts_with_the_failure(run: Run, tmp_path: Path) -> None:
    metadata, text = parts((exported(run, tmp_path / "sae") / "README.md").read_text())
    lines = [line for line in text.splitlines() if line]
    failed = [row.gate for row in run.record("gate").table("gates") if row.required and row.verdict != "pass"]
    assert "transcoder" in failed
    assert lines[0].startswith("**This SAE failed the release gate: ")
    assert lines[0].endswith("**")
    assert all(export.gates.describe(gate) in lines[0] for gate in failed)
    assert lines[1] == "# SAE for random:package:husai_lib/data/tiny_gpt_neox at blocks.0.hook_resid_post: topk"
    assert metadata["library_name"] == "saelens"
    assert {"saelens", "topk", "failed-release-gate"} <= set(metadata["tags"])
    assert not {"license", "base_model", "datasets"} & set(metadata)


def test_a_candidate_that_passed_needs_no_option_and_its_card_no_warning(run: Run, tmp_path: Path) -> None:
    change(run, "gate", pass_gates)
    metadata, text = parts((export.export(run, tmp_path / "sae") / "README.md").read_text())
    assert text.strip().startswith("# SAE for ")
    assert "**Releasable**: all 8 required gates pass." in text
    assert "failed-release-gate" not in metadata["tags"]


def test_a_verdict_that_its_gates_contradict_is_refused(run: Run, tmp_path: Path) -> None:
    change(run, "gate", lambda data: data["summary"].update(pass_all=True))
    with pytest.raises(IntegrityError, match="do not give the verdict that their record states"):
        exported(run, tmp_path / "sae")


def test_tables_of_the_card_are_those_of_the_records(run: Run, tmp_path: Path) -> None:
    text = (exported(run, tmp_path / "sae") / "README.md").read_text()
    members = [row for row in run.record("frontier").table("members") if row.condition == "topk"]
    assert tables.table_of(run.record("gate").table("gates")) in text
    assert tables.members_table(members) in text
    assert tables.table_of(run.record("stress").table("controls")) in text
    for words in ("| Latents (d_sae)", "| 64 ", "the median of 3 seeds", "offline stories", "random weights",
                 "Small training", "No licence is stated", run.name):  # fmt: skip
        assert words.casefold() in text.casefold(), words
    hashes = [run.record(step).sha256 for step in run.journal]
    assert all(sha256 in text for sha256 in [*hashes, selected(run)["weights_sha256"]])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert sum(token.type == "table_open" for token in tokens) == 7
    assert "n/a |" not in text.split("## How to load it")[0]


def test_the_code_of_the_card_loads_the_sae(run: Run, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "sae")
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    script = tmp_path / "card.py"
    script.write_text(code.replace("FOLDER", str(folder)))
    assert runpy.run_path(str(script), {"rows": torch.ones(2, 32)})["latents"].shape == (2, 64)
    assert 'SAE.from_pretrained("REPOSITORY", "blocks.0.hook_resid_post")' in code


@pytest.mark.parametrize("name", export.OWN_CLASSES)
def test_the_code_imports_a_class_that_saelens_has_not(run: Run, name: str) -> None:
    config = {"architecture": name, "d_in": 32, "dtype": "float32"}
    assert f"import husai_lib.saes.architectures.{name} " in model_card(export.candidate_of(run), config)


def test_the_classes_that_saelens_has_not_are_those_that_register_themselves() -> None:
    for name in ARCHITECTURES:
        importlib.import_module(f"husai_lib.saes.architectures.{name}")
    own = {name for name, (sae, _) in SAE_CLASS_REGISTRY.items() if sae.__module__.startswith("husai_lib")}
    assert {name for name in own if "transcoder" not in name} == set(export.OWN_CLASSES)


@pytest.mark.parametrize(
    "names",
    [
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m", "EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("pythia-70m-deduped", None, "pythia-70m-deduped", "pythia-70m-deduped"),  # TransformerLens' name, no hub's
        ("package:llm/a.gguf", None, "package:llm/a.gguf", "package:llm/a.gguf"),
        ("/home/somebody/own.gguf", None, None, "own.gguf"),
        ("random:/home/somebody/own", None, None, "random:own"),
        ("owner/x: <b>|`#`\n---\ny", None, "owner/x: <b>|`#`\n---\ny", r"owner/x: &lt;b&gt;\|\`#\` --- y"),
    ],
)
def test_the_model_is_named_as_others_can_have_it(
    run: Run, tmp_path: Path, names: tuple[str, str | None, str | None, str]
) -> None:
    name, base_model, in_config, shown = names
    change_parameters(run, model={"name": name})
    folder = exported(run, tmp_path / "sae")
    metadata, text = parts((folder / "README.md").read_text())
    assert metadata.get("base_model") == base_model
    assert json.loads((folder / "cfg.json").read_text())["metadata"].get("model_name") == in_config
    assert f"# SAE for {shown} at " in text
    assert "somebody" not in text
    assert ("Random weights" in text) == name.startswith("random:")


def test_the_exported_folder_says_by_itself_what_it_is_of(run: Run, tmp_path: Path) -> None:
    change_parameters(run, model={"name": "package:husai_lib/data/tiny_gpt_neox", "prepend_bos": False})
    subject = folder_subject(exported(run, tmp_path / "sae"), None, None)
    assert subject.model == ModelParams(name="package:husai_lib/data/tiny_gpt_neox", prepend_bos=False)
    assert subject.hook_name == "blocks.0.hook_resid_post"
    assert "start without a BOS token" in (tmp_path / "sae" / "README.md").read_text()


def test_caveats_follow_the_parameters(run: Run, tmp_path: Path) -> None:
    change_parameters(run, model={"name": "owner/model"}, texts={"stories": "GulkoA/contrastive-stories-v4"},
                      probing={"choose_k": "test"})  # fmt: skip
    text = (exported(run, tmp_path / "sae") / "README.md").read_text()
    assert "Offline stories" not in text
    assert "Random weights" not in text
    assert "chosen on the test rows" in text


def test_a_folder_that_holds_something_is_refused_and_left(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("sae", "file"):
        with pytest.raises(ParameterError, match="is not empty; name a new or an empty folder"):
            exported(run, tmp_path / name)
    assert [path.name for path in (tmp_path / "sae").iterdir()] == ["notes.txt"]
    with pytest.raises(ParameterError, match="sealed"):
        exported(run, run.path / "sae")
    assert not (run.path / "sae").exists()


def test_an_empty_folder_is_taken(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    assert {path.name for path in exported(run, tmp_path / "sae").iterdir()} == FILES


def test_a_folder_that_cannot_be_written_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HusaiError, match=r"file/sae cannot be written \(.*\); free space or name another folder"):
        exported(run, tmp_path / "file" / "sae")


def test_a_disk_that_fills_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    target = tmp_path / "out" / "sae"
    candidate = export.candidate_of(run)
    monkeypatch.setattr(export, "candidate_of", lambda _: candidate)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EvidenceError, match=r"sae cannot be written \(No space left on device\); free space"):
        exported(run, target)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("resealed", [False, True])
def test_weights_that_were_changed_are_refused(run: Run, tmp_path: Path, resealed: bool) -> None:
    folder = cache.cache_folder() / "saes" / selected(run)["key"]
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    if resealed:
        entry = read_json(folder / "entry.json")
        write_json(folder / "entry.json", entry | {"files": entry["files"] | {weights.name: sha256_file(weights)}})
    with pytest.raises(IntegrityError, match="run again" if not resealed else "run the cycle again"):
        exported(run, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_weights_that_are_not_in_the_cache_are_reported(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(cache.cache_folder() / "saes" / selected(run)["key"])
    with pytest.raises(EvidenceError, match=r"not in the cache .*; run the cycle again with the same parameters"):
        exported(run, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize("name", ["release_policy.json", "records/gate.json", "parameters.json"])
def test_a_run_with_a_changed_file_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    (run.path / name).write_text((run.path / name).read_text().replace("false", "true"))
    with pytest.raises(IntegrityError, match=name):
        exported(run, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_an_unfinished_run_is_refused(run: Run, tmp_path: Path) -> None:
    (run.path / "manifest.json").unlink()
    with pytest.raises(EvidenceError, match=r"unfinished.*--resume"):
        exported(run, tmp_path / "sae")


def test_a_run_without_a_candidate_is_refused(run: Run, tmp_path: Path) -> None:
    change(run, "selection", lambda data: data["summary"].update(selected=None))
    with pytest.raises(DataError, match="selected no candidate"):
        exported(run, tmp_path / "sae")


def later_run(run: Run, source: str) -> Run:
    """A run whose candidate is that of `run`, as a run that ranks earlier ones has it."""
    later = Run(run.path.with_name("run_later"))
    shutil.copytree(run.path, later.path)

    def edit(data: dict[str, Any]) -> None:
        data["summary"]["selected"]["source"] = source
        data["earlier"] = {source: run.record("frontier").sha256}

    change(later, "selection", edit)
    return later


def test_a_candidate_of_an_earlier_run_is_taken_from_there(run: Run, tmp_path: Path) -> None:
    later = later_run(run, f"{run.name}/frontier")
    text = (exported(later, tmp_path / "sae") / "README.md").read_text()
    assert f"Record {run.name}/frontier" in text
    parameters = run.path / "parameters.json"
    parameters.write_text(parameters.read_text().replace("tiny_gpt_neox", "other"))
    with pytest.raises(IntegrityError, match=r"parameters.json was changed after it was written"):
        exported(later, tmp_path / "again")
    change_parameters(run, model={"name": "owner/other"})
    assert "# SAE for owner/other at " in (exported(later, tmp_path / "again") / "README.md").read_text()
    change(run, "frontier", lambda data: data.update(wall_seconds=1e6))
    with pytest.raises(IntegrityError, match=f"step selection read another record {run.name}/frontier"):
        exported(later, tmp_path / "third")


def test_a_candidate_whose_records_were_imported_has_no_weights(run: Run, tmp_path: Path) -> None:
    later = later_run(run, f"{run.name}/frontier")
    change(later, "selection", lambda data: data["summary"]["selected"].update(key="", weights_sha256=""))
    with pytest.raises(DataError, match=f"comes from {run.name}/frontier, which holds no weights"):
        exported(later, tmp_path / "sae")


# ---------------------------------------------------------------------------------------------
# The upload
# ---------------------------------------------------------------------------------------------


class Hub:
    """A stand-in for the hub behind `HfApi`: it keeps what is uploaded, by repository and path."""

    def __init__(self) -> None:
        self.commits: list[dict[str, bytes]] = []

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def create_repo(self, repo_id: str, exist_ok: bool = False) -> Any:
        assert exist_ok
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{'me/' if '/' not in repo_id else ''}{repo_id}")

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> None:
        assert commit_message
        self.commits.append(
            {f"{repo_id}/{one.path_in_repo}": Path(one.path_or_fileobj).read_bytes() for one in operations}
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that can be reached, with a user logged in."""
    hub = Hub()
    for name in ("create_repo", "create_commit", "whoami"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, getattr(hub, name))
    return hub


def test_card_policy_and_sae_are_uploaded_in_one_commit(run: Run, tmp_path: Path, hub: Hub) -> None:
    folder = exported(run, tmp_path / "sae")
    assert push(folder, "me/sae") == "https://huggingface.co/me/sae"
    sae, [commit] = "me/sae/blocks.0.hook_resid_post", hub.commits
    assert {*commit} == {
        "me/sae/README.md", "me/sae/release_policy.json", f"{sae}/cfg.json", f"{sae}/sae_weights.safetensors",
    }  # fmt: skip
    assert all(content == (folder / name.split("/")[-1]).read_bytes() for name, content in commit.items())


def test_a_repository_without_an_owner_is_that_of_the_account(run: Run, tmp_path: Path, hub: Hub) -> None:
    assert push(exported(run, tmp_path / "sae"), "sae") == "https://huggingface.co/me/sae"
    assert all(path.startswith("me/sae/") for path in hub.commits[0])


def test_a_refusal_of_the_hub_is_reported_in_one_sentence(
    run: Run, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden\n\nYou don't have the rights")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    folder = exported(run, tmp_path / "sae")
    with pytest.raises(HusaiError, match="403 Forbidden You don't have the rights; check the network"):
        push(folder, "me/sae")
    assert not hub.commits
    assert {path.name for path in folder.iterdir()} == FILES


def checked(environment: dict[str, str]) -> str:
    """What a check before an upload says in a process with these variables, where nothing answers as the hub."""
    code = "from husai_lib.report.export import check_ready; check_ready('me/sae')"
    nothing = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none"}
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | nothing | environment, capture_output=True,
                           text=True, check=False)  # fmt: skip
    return ended.stderr


@pytest.mark.slow
def test_an_upload_needs_a_login(tmp_path: Path) -> None:
    said = checked({"HF_TOKEN": "", "HF_HOME": str(tmp_path)})
    assert re.search(r"HusaiError: the hub cannot take 'me/sae': .*hf auth login", said)


def test_a_name_that_can_be_taken_is_accepted(hub: Hub) -> None:
    export.check_ready("me/sae")


@pytest.mark.parametrize("name", ["a/b/c", "a b", "../x", ""])
def test_a_name_that_no_repository_can_have_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(HusaiError, match="owner/name"):
        export.check_ready(name)


@pytest.mark.slow
def test_a_hub_that_is_switched_off_is_reported_before_anything_starts() -> None:
    assert re.search(r"HusaiError: .*unset the `HF_HUB_OFFLINE`", checked({"HF_HUB_OFFLINE": "1"}))


@pytest.mark.slow
def test_without_a_network_the_upload_fails_in_one_sentence(run: Run, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "sae")
    code = f"from pathlib import Path; from husai_lib.report.export import push; push(Path({str(folder)!r}), 'me/sae')"
    online = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none", "HF_ENDPOINT": "http://127.0.0.1:9"}
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | online, capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert re.search(r"HusaiError: .* was not uploaded to 'me/sae': .*; check the network", ended.stderr), ended.stderr
    assert not ended.stdout


@pytest.mark.slow
def test_the_export_loads_no_torch() -> None:
    code = "import sys, husai_lib.report.export; assert not {'torch', 'sae_lens', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
