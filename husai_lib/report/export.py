"""A run's candidate as a folder that SAELens loads, with a model card made from records, and the folder's upload."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from husai_lib.decisions import gates
from husai_lib.errors import DataError, EvidenceError, GateError, HusaiError, IntegrityError, ParameterError
from husai_lib.evidence.cache import Entry, cache_folder, open_entry
from husai_lib.evidence.rows import CandidateRow, MemberRow
from husai_lib.evidence.runs import Record, Run, earlier_run
from husai_lib.files import canonical_json, read_json
from husai_lib.params.catalogue import local_path
from husai_lib.params.rules import SelectionParams
from husai_lib.report import sentences, tables
from husai_lib.report.webpages import TEMPLATES

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
POLICY, CARD = "release_policy.json", "README.md"
OWN_CLASSES = ("routed_topk", "route_sae", "layerwise")
"""Architectures that SAELens can load only after `husai_lib.saes.architectures.<name>` is imported."""


@dataclass(frozen=True)
class Candidate:
    """The selected SAE and where it comes from, every record verified."""

    run: Run
    """The run that selected and judged it."""
    origin: Run
    """The run that trained it: the same one, or an earlier run."""
    record: Record
    """The record of the step that measured it."""
    member: MemberRow

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"the candidate of {self.run.name} ({self.member.condition}, seed {self.member.seed})"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the run that trained it."""
        parameters: dict[str, Any] = read_json(self.origin.path / "parameters.json")
        return parameters

    def rows(self, table: str) -> list[Any]:
        """The rows of its condition in a table of its record; none where the record has no such table."""
        rows = self.record.table(table) if table in self.record.data["tables"] else []
        return [row for row in rows if row.condition == self.member.condition]


def export(run: Run, folder: Path, *, even_if_failed: bool = False) -> Path:
    """Write the run's candidate to the new or empty `folder`: SAELens' two files, `README.md`, `release_policy.json`.

    The folder appears whole or not at all. Raises GateError for a candidate that failed its gate, unless
    `even_if_failed`, where the card starts with the failure; EvidenceError where the run is unfinished or the weights
    are not in the cache; IntegrityError where a file differs from its record; DataError where there is no candidate;
    ParameterError where the folder is not free.
    """
    _check_free(folder, run)
    candidate = candidate_of(run)
    failure = why_failed(run)
    if failure and not even_if_failed:
        remedy = "add --even-if-failed to export it anyway; its card then starts with the failure"
        raise GateError(f"{candidate.name} failed the release gate: {failure.rstrip('.')}; {remedy}")
    entry = _weights_of(candidate)
    config = _config(candidate, entry)
    card = model_card(candidate, config)
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            made = Path(temporary) / "export"
            made.mkdir()
            shutil.copyfile(entry.path / WEIGHTS, made / WEIGHTS)
            shutil.copyfile(run.path / POLICY, made / POLICY)
            (made / CONFIG).write_text(canonical_json(config), encoding="utf-8")
            (made / CARD).write_text(card, encoding="utf-8")
            made.replace(target)  # replaces an empty folder only
    except OSError as error:
        why = error.strerror or error
        raise EvidenceError(f"{folder} cannot be written ({why}); free space or name another folder") from error
    return folder


def check_ready(repo: str) -> None:
    """Raise HusaiError where the repository's name is wrong, the hub is switched off or nobody is logged in."""
    from huggingface_hub import get_token, is_offline_mode  # noqa: PLC0415 - not needed by other commands
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # noqa: PLC0415

    try:
        validate_repo_id(repo)
    except ValueError:
        raise HusaiError(f"{repo!r} is not the name of a repository; write it as owner/name") from None
    if is_offline_mode():
        raise HusaiError("HF_HUB_OFFLINE switches the hub off; unset it to upload")
    if get_token() is None:
        raise HusaiError("nobody is logged in to the hub here; run 'hf auth login' or set HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """Upload an exported folder to the hub's repository `repo`, created if there is none; returns its address.

    One commit holds everything, so that an SAE is never on the hub without its card: card and policy at the root, the
    SAE in a folder named by its hook, where `SAE.from_pretrained` looks. Raises DataError for another folder,
    HusaiError where the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - not needed by other commands
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    lacking = [name for name in (CONFIG, WEIGHTS, CARD, POLICY) if not (folder / name).is_file()]
    if lacking:
        raise DataError(f"{folder} lacks {', '.join(lacking)}; name a folder that 'husai export' wrote")
    check_ready(repo)
    sae = read_json(folder / CONFIG)["metadata"]["hook_name"]
    places = {CARD: CARD, POLICY: POLICY, CONFIG: f"{sae}/{CONFIG}", WEIGHTS: f"{sae}/{WEIGHTS}"}
    # the hub's client raises the HTTPError of its HTTP library, OSError, and ValueError for a wrong argument
    hub_errors = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, ValueError))
    try:
        address = HfApi().create_repo(repo, exist_ok=True)
        added = [CommitOperationAdd(path, folder / name) for name, path in places.items()]
        HfApi().create_commit(address.repo_id, added, commit_message=f"Upload the SAE {sae} with its card")
    except hub_errors as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        remedy = "check the network, the name and that the token may write there, then export to another folder"
        raise HusaiError(f"{folder} is exported, but was not uploaded to {repo!r}: {reason}; {remedy}") from error
    return str(address)


def _check_free(folder: Path, run: Run) -> None:
    if folder.resolve().is_relative_to(run.path.resolve()):
        raise ParameterError(f"{folder} lies in the run, whose files are sealed; name a folder elsewhere")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ParameterError(f"{folder} is not empty; name a new or an empty folder")


def candidate_of(run: Run) -> Candidate:
    """The selected SAE of a complete run; see `export` for what it raises."""
    _verify(run)
    selection = run.record("selection")
    selected = selection.summary["selected"]
    if not selected:
        raise DataError(f"{run.name} selected no candidate, so there is none to export; 'husai show' says why")
    source = selected["source"]
    place, _, step = source.rpartition("/")
    origin = earlier_run(run.path.parent.parent, place) if place else run
    record = origin.record(step)
    if place and record.sha256 != selection.data["earlier"].get(source):
        raise IntegrityError(f"the record {source} is not the one that {run.name} read; restore it")
    if not selected["key"] or "members" not in record.data["tables"]:
        raise DataError(f"the candidate of {run.name} comes from {source}, which holds no weights; train it in a cycle")
    if place:
        _verify(origin)
    wanted = [selected[key] for key in ("condition", "seed", "weights_sha256")]
    found = [m for m in record.table("members") if [m.condition, m.seed, m.weights_sha256] == wanted]
    if not found:
        raise IntegrityError(f"the record {source} has no member that is the candidate of {run.name}; verify the run")
    return Candidate(run, origin, record, found[0])


def why_failed(run: Run) -> str:
    """Which gates the run's candidate failed, as a sentence; empty if it passed."""
    gate = run.record("gate")
    verdict, _, reason = gates.verdict_sentence(gate.table("gates")).partition(": ")
    if gate.summary["pass_all"] != (verdict == "Releasable"):
        raise IntegrityError(f"{run.name}: the gates do not give the verdict that their record states; verify the run")
    return "" if gate.summary["pass_all"] else reason


def model_card(candidate: Candidate, config: dict[str, Any]) -> str:
    """The card of an SAE whose `cfg.json` holds `config`; every number comes from a verified record."""
    run, failure = candidate.run, why_failed(candidate.run)
    own = config["architecture"] in OWN_CLASSES
    card = TEMPLATES.get_template("model_card.md.jinja").render(
        front_matter=_front_matter(candidate, failed=bool(failure)),
        failure=failure,
        candidate=candidate,
        run=run,
        params=candidate.parameters,
        facts=_facts(candidate, config),
        own_class=config["architecture"] if own else "",
        describe=gates.describe,
        requirement=gates.requirement,
        members=candidate.rows("members"),
        groups=candidate.rows("groups"),
        tables=tables,
        sentences=sentences,
    )
    return f"{card}\n"


def _facts(candidate: Candidate, config: dict[str, Any]) -> dict[str, Any]:
    """What the SAE is, by name, for the cells of the card; None for what no record holds."""
    params, member, activations = candidate.parameters, candidate.member, candidate.origin.record("activations")
    conditions = {given["name"]: given for given in candidate.record.data["parameters"].get("conditions", [])}
    unknown = dict.fromkeys(("training_samples", "batch_size", "learning_rate"))
    trained = unknown | conditions.get(member.condition, {})
    chosen: CandidateRow = next(row for row in candidate.run.record("selection").table("candidates") if row.selected)
    rows = [bank.rows for bank in activations.table("banks") if bank.bank == "training"]
    facts: dict[str, Any] = params["activations"] | params["model"] | trained | dict(member) | {
        "model": _public_name(params["model"]["name"]),
        "norm_limit": activations.summary.get("norm_limit"),
        "d_in": config["d_in"],
        "saelens_architecture": config["architecture"],
        "weights_dtype": config["dtype"],
        "training_texts": ", ".join(params["texts"]["training"]),
        "training_rows": rows[0] if rows else None,
        "hyperparameters": ", ".join(f"{k} = {v}" for k, v in trained.get("hyperparameters", {}).items()) or None,
        "n_seeds": chosen.n_seeds,
        "standing": _standing(candidate.run),
    }  # fmt: skip
    return facts


def _standing(run: Run) -> str:
    """How the representative seed was chosen."""
    rules = SelectionParams.model_validate(run.record("selection").data["parameters"]["selection"])
    if rules.grouping == "seed":
        return "ranked by itself"
    return "the best-scoring" if rules.rules == "2026-02" else "the median"


def _front_matter(candidate: Candidate, *, failed: bool) -> str:
    """The card's metadata for the hub, as YAML.

    Language and licence are left out, as no record states them, and so are data sets, as the texts have no hub name.
    The base model is named where its name is one of the hub, with an owner.
    """
    name = candidate.parameters["model"]["name"]
    tags = ["saelens", "sparse-autoencoder", "interpretability", candidate.member.architecture]
    data = {"library_name": "saelens", "tags": [*tags, *(["failed-release-gate"] if failed else [])]}
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name, re.ASCII) and not name.endswith(".gguf")
    return yaml.safe_dump(data | ({"base_model": name} if is_hub_name else {}), sort_keys=False).rstrip()


def _public_name(name: str) -> str:
    """The language model's name without folders of this machine."""
    start = "random:" if name.startswith("random:") else ""
    return start + (Path(name).name if _is_local(name) else name.removeprefix("random:"))


def _is_local(name: str) -> bool:
    """Whether the name is a path that means nothing on another machine."""
    source = name.removeprefix("random:")
    return not source.startswith("package:") and local_path(source) is not None


def _verify(run: Run) -> None:
    """Raise IntegrityError where a file of a complete run differs from its manifest."""
    stated, found = run.manifest()["files"], run.files()
    for name in sorted(stated.keys() | found.keys()):
        if stated.get(name) != found.get(name):
            raise IntegrityError(f"{run.path / name} is not what the manifest says; restore it or run the cycle again")


def _weights_of(candidate: Candidate) -> Entry:
    """The cache entry of the candidate, verified."""
    key, remedy = candidate.member.key, "run the cycle again with the same parameters"
    if not (cache_folder() / "saes" / key).exists():
        raise EvidenceError(f"the weights of {candidate.name} are not in the cache {cache_folder()}; {remedy}")
    entry = open_entry("saes", key)
    if CONFIG not in entry.files or entry.files.get(WEIGHTS) != candidate.member.weights_sha256:
        raise IntegrityError(f"{entry.path} does not hold {candidate.name}; delete that folder and {remedy}")
    return entry


def _config(candidate: Candidate, entry: Entry) -> dict[str, Any]:
    """`cfg.json` of the cache, with the model and BOS of its activations; a local or random model is not named."""
    config: dict[str, Any] = json.loads((entry.path / CONFIG).read_text(encoding="utf-8"))
    model = candidate.parameters["model"]
    known = {"prepend_bos": model["prepend_bos"]}
    if not (_is_local(model["name"]) or model["name"].startswith("random:")):
        known["model_name"] = model["name"]
    return config | {"metadata": config["metadata"] | known}
