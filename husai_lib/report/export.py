"""A run's candidate as a folder that SAELens loads, with a model card made from records, and the folder's upload."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from husai_lib.decisions import gates
from husai_lib.errors import DataError, EvidenceError, GateError, HusaiError, IntegrityError, ParameterError
from husai_lib.evidence.cache import Entry, cache_folder, is_there, open_entry
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.evidence.runs import Record, Run, earlier_run
from husai_lib.evidence.steps import condition_of
from husai_lib.evidence.verification import problems_of
from husai_lib.files import canonical_json, explained, read_json
from husai_lib.params.catalogue import local_path
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
    parameters: dict[str, Any]
    """The parameters of the run that trained it."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"the candidate of {self.run.name} ({self.member.condition}, seed {self.member.seed})"


def export(run: Run, folder: Path, *, even_if_failed: bool = False) -> Path:
    """Write the run's candidate to the new or empty `folder`: SAELens' two files, `README.md`, `release_policy.json`.

    The folder appears whole or not at all. Raises GateError for a candidate that failed its gate, unless
    `even_if_failed`, where the card starts with the failure; EvidenceError where the run is unfinished or the weights
    are not in the cache; IntegrityError where a file differs from its record; DataError where there is no candidate;
    ParameterError where the folder is not free.
    """
    if folder.resolve().is_relative_to(run.path.resolve()):
        raise ParameterError(f"{folder} lies in the run, whose files are sealed; name a folder elsewhere")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ParameterError(f"{folder} is not empty; name a new or an empty folder")
    candidate = candidate_of(run)
    failure = why_failed(run)
    if failure and not even_if_failed:
        remedy = "add --even-if-failed to export it anyway; its card then starts with the failure"
        raise GateError(f"{candidate.name} failed the release gate: {failure.rstrip('.')}; {remedy}")
    entry = _weights_of(candidate)
    config = json.loads((entry.path / CONFIG).read_text(encoding="utf-8"))
    model = candidate.parameters["model"]
    config["metadata"]["prepend_bos"] = model["prepend_bos"]
    if not (_is_local(model["name"]) or model["name"].startswith("random:")):
        config["metadata"]["model_name"] = model["name"]
    card = model_card(candidate, config)
    target = folder.resolve()
    with explained(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            made = Path(temporary) / "export"
            made.mkdir()
            shutil.copyfile(entry.path / WEIGHTS, made / WEIGHTS)
            shutil.copyfile(run.path / POLICY, made / POLICY)
            (made / CONFIG).write_text(canonical_json(config), encoding="utf-8")
            (made / CARD).write_text(card, encoding="utf-8")
            made.replace(target)  # replaces an empty folder only
    return folder


def check_ready(repo: str) -> None:
    """Raise HusaiError where the hub cannot be reached, nobody is logged in, or no repository can have this name."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - not needed by other commands
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # noqa: PLC0415

    with _asking_the_hub(f"the hub cannot take {repo!r}"):
        validate_repo_id(repo)
        HfApi().whoami()


def push(folder: Path, repo: str) -> str:
    """Upload an exported folder to the hub's repository `repo`, created if there is none; returns its address.

    One commit holds everything, so that an SAE is never on the hub without its card: card and policy at the root, the
    SAE in a folder named by its hook, where `SAE.from_pretrained` looks. Raises HusaiError where the hub refuses or
    cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - not needed by other commands

    sae = read_json(folder / CONFIG)["metadata"]["hook_name"]
    places = {CARD: CARD, POLICY: POLICY, CONFIG: f"{sae}/{CONFIG}", WEIGHTS: f"{sae}/{WEIGHTS}"}
    with _asking_the_hub(f"{folder} is exported, but was not uploaded to {repo!r}"):
        address = HfApi().create_repo(repo, exist_ok=True)
        added = [CommitOperationAdd(path, folder / name) for name, path in places.items()]
        HfApi().create_commit(address.repo_id, added, commit_message=f"Upload the SAE {sae} with its card")
    return str(address)


@contextmanager
def _asking_the_hub(failure: str) -> Iterator[None]:
    """Report what the hub's client raises: the HTTPError of its HTTP library, OSError or ValueError."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - not needed by other commands

    try:
        yield
    except cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, ValueError)) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        remedy = "check the network, the login ('hf auth login') and the name, as owner/name"
        raise HusaiError(f"{failure}: {reason}; {remedy}") from error


def candidate_of(run: Run) -> Candidate:
    """The selected SAE of a complete run; see `export` for what it raises."""
    _verify(run)
    selected = run.record("selection").summary["selected"]
    if not selected:
        raise DataError(f"{run.name} selected no candidate, so there is none to export; 'husai show' says why")
    source = selected["source"]
    place, _, step = source.rpartition("/")
    origin = earlier_run(run.path.parent.parent, place) if place else run
    record = origin.record(step)
    if not selected["key"] or "groups" not in record.data["tables"]:
        what = f"{source}, which holds no weights of a condition that a cycle trained"
        raise DataError(f"the candidate of {run.name} comes from {what}; train it in a cycle")
    if place:
        _verify(origin)
    wanted = [selected[key] for key in ("condition", "seed", "weights_sha256")]
    found = [m for m in record.table("members") if [m.condition, m.seed, m.weights_sha256] == wanted]
    if not found:
        raise IntegrityError(f"the record {source} has no member that is the candidate of {run.name}; verify the run")
    return Candidate(run, origin, record, found[0], read_json(origin.path / "parameters.json"))


def why_failed(run: Run) -> str:
    """Which gates the run's candidate failed, as a sentence; empty if it passed."""
    gate = run.record("gate")
    verdict, _, reason = gates.verdict_sentence(gate.table("gates")).partition(": ")
    if gate.summary["pass_all"] != (verdict == "Releasable"):
        raise IntegrityError(f"{run.name}: the gates do not give the verdict that their record states; verify the run")
    return "" if gate.summary["pass_all"] else reason


def model_card(candidate: Candidate, config: dict[str, Any]) -> str:
    """The card of an SAE whose `cfg.json` holds `config`; every number comes from a verified record."""
    name = candidate.parameters["model"]["name"]
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name, re.ASCII) and not name.endswith(".gguf")
    source = name.removeprefix("random:")
    card = TEMPLATES.get_template("model_card.md.jinja").render(
        candidate=candidate,
        config=config,
        model=name.removesuffix(source) + (Path(source).name if _is_local(name) else source),
        base_model=name if is_hub_name else "",
        failure=why_failed(candidate.run),
        own_classes=OWN_CLASSES,
        trained=condition_of(candidate.run.record("selection").summary["selected"], candidate.run.find_record),
    )
    return f"{card}\n"


def _is_local(name: str) -> bool:
    """Whether the name is a path that means nothing on another machine."""
    source = name.removeprefix("random:")
    return not source.startswith("package:") and local_path(source) is not None


def _verify(run: Run) -> None:
    """Raise EvidenceError for an unfinished run and IntegrityError for one that does not verify."""
    run.manifest()
    if problems := problems_of(run):
        raise IntegrityError(f"{run.name} does not verify: {problems[0]}")


def _weights_of(candidate: Candidate) -> Entry:
    """The cache entry of the candidate, verified."""
    key, remedy = candidate.member.key, "run the cycle again with the same parameters"
    if not is_there("saes", key):
        raise EvidenceError(f"the weights of {candidate.name} are not in the cache {cache_folder()}; {remedy}")
    entry = open_entry("saes", key)
    if CONFIG not in entry.files or entry.files.get(WEIGHTS) != candidate.member.weights_sha256:
        raise IntegrityError(f"{entry.path} does not hold {candidate.name}; delete that folder and {remedy}")
    return entry
