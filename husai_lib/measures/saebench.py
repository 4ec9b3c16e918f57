"""The other evaluations of SAEBench: what each needs, which SAE is meant, and one process for each evaluation.

The package sae-bench is installed without its own requirements, which would break this environment, and names data
sets of the hub. What is not here is told before anything runs.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from husai_lib import errors
from husai_lib.errors import DataError, IntegrityError, ModelError, ParameterError
from husai_lib.evidence.cache import cache_folder, open_entry
from husai_lib.evidence.runs import Run, find_run
from husai_lib.files import REPOSITORY, read_json, sha256_file, write_json
from husai_lib.params.inputs import ModelParams
from husai_lib.params.sections import check, one_of

OPENWEBTEXT = "Skylion007/openwebtext"
"""The text of `core`; where it is not here, `core` reads texts of sae-probes."""
TEXTS = ("100_news_fake", "48_cm_correct", "89_glue_mrpc")
"""Data sets of sae-probes whose texts `core` then reads, for an SAE of no run."""
BIOS, REVIEWS = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of sae-bench needs beside the SAE and its language model."""

    module: str = ""
    """The package in `sae_bench.evals`, where its name is another."""
    packages: tuple[str, ...] = ()
    """Python modules that sae-bench imports and this project has not."""
    data_sets: tuple[str, ...] = ()
    """Data sets of the hub."""
    file: str = ""
    """A file or folder that sae-bench looks for in the working folder."""
    source: str = ""
    """Where to get it."""
    models: tuple[str, ...] = ()
    """The only language models that it knows."""
    variable: str = ""
    """An environment variable that holds a key."""
    hook: str = ""
    """The only kind of hook that it reads; empty for any."""


EVALUATIONS = {
    "core": Evaluation(),
    "absorption": Evaluation(hook="hook_resid_post"),
    "sparse_probing_sae_probes": Evaluation(),
    "meta_structure": Evaluation(),
    "sparse_probing": Evaluation(
        data_sets=(BIOS, REVIEWS, "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl")
    ),
    "scr": Evaluation("scr_and_tpp", data_sets=(BIOS, REVIEWS)),
    "tpp": Evaluation("scr_and_tpp", data_sets=(BIOS, REVIEWS)),
    "ravel": Evaluation(
        file="artifacts/ravel/base",
        source="the data set adamkarvonen/ravel_prompts",
        models=("gemma-2-2b", "pythia-160m-deduped"),
    ),
    "unlearning": Evaluation(
        data_sets=("wikitext", "cais/wmdp", "cais/mmlu"),
        file="sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl",
        source="a file that the authors of WMDP give on request",
        models=("gemma-2-2b-it", "gemma-2-9b-it"),
    ),
    "autointerp": Evaluation(
        packages=("openai",), data_sets=("monology/pile-uncopyrighted",), variable="OPENAI_API_KEY"
    ),
    "mdl": Evaluation(packages=("collectibles", "loguru"), data_sets=("HuggingFaceFW/fineweb",)),
}


@dataclass(frozen=True)
class Subject:
    """A SAELens folder and the language model whose activations it explains."""

    folder: Path
    hook_name: str
    model: ModelParams
    weights_sha256: str
    cfg_sha256: str
    texts: tuple[str, ...] = TEXTS
    """Data sets of sae-probes for `core`."""
    probing: tuple[str, ...] = ()
    """Data sets for `sparse_probing_sae_probes`; empty for all that it has."""

    @property
    def label(self) -> str:
        """What sae-bench calls the model: no path, as it makes file names of it."""
        name = self.model.name.removeprefix("random:")
        return ("random-" if name != self.model.name else "") + Path(name).name.removesuffix(".gguf")


def run_subject(run: Run, condition: str | None, seed: int | None) -> Subject:
    """The selected candidate of a run, or its member of another condition and seed, weights verified.

    Raises DataError if there is no such member, IntegrityError if the cache holds other weights.
    """
    selected = run.record("selection").summary["selected"] if "selection" in run.journal else None
    wanted = (condition, seed)
    if selected:
        wanted = (condition or selected["condition"], selected["seed"] if seed is None else seed)
    if None in wanted:
        raise DataError(f"{run.name} selected no candidate; name one with --condition and --seed")
    members = {(row.condition, row.seed): row for row in run.record("frontier").table("members")}
    if wanted not in members:
        known = ", ".join(f"{name} {number}" for name, number in members)
        raise DataError(f"{run.name} has no member {wanted[0]!r} of seed {wanted[1]}; it has {known}")
    entry = open_entry("saes", members[wanted].key)
    if entry.files["sae_weights.safetensors"] != members[wanted].weights_sha256:
        raise IntegrityError(f"the weights in {entry.path} are not those of {run.name}; run the cycle again")
    params = read_json(run.path / "parameters.json")
    model = check(ModelParams, params["model"], f"{run.name}, model")
    given = params["texts"]
    return _subject(entry.path, model, texts=tuple(given["held_out"]), probing=tuple(given["probing"]))


def folder_subject(folder: Path, model: str | None, prepend_bos: bool | None) -> Subject:
    """Any SAELens folder, with the model and BOS of its own metadata unless others are given."""
    metadata = _metadata(folder)
    name = model or metadata.get("model_name")
    bos = metadata.get("prepend_bos") if prepend_bos is None else prepend_bos
    if not name:
        raise ParameterError(f"{folder / 'cfg.json'} names no language model; name it with --model")
    if bos is None:
        remedy = "add --prepend-bos or --no-prepend-bos"
        raise ParameterError(f"{folder / 'cfg.json'} does not say whether texts start with BOS; {remedy}")
    return _subject(folder, check(ModelParams, {"name": name, "prepend_bos": bos}, "--model"))


def _metadata(folder: Path) -> dict[str, Any]:
    """`cfg.json`, its metadata beside its own keys as older SAELens had them."""
    try:
        config: dict[str, Any] = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder} has no readable cfg.json; name a folder that SAELens wrote") from None
    return config | (config.get("metadata") or {})


def _subject(folder: Path, model: ModelParams, **texts: Any) -> Subject:
    """The SAE of a folder, refused where sae-bench would measure something else than what it is."""
    metadata, weights = _metadata(folder), folder / "sae_weights.safetensors"
    hook = metadata.get("hook_name")
    if not weights.exists():
        raise DataError(f"{weights} is missing; name a folder that SAELens wrote")
    if not hook or "+" in hook:
        raise DataError(f"{folder} reads {hook or 'no hook it names'}, but sae-bench reads one hook; give another SAE")
    if metadata.get("hook_name_out") not in {None, hook}:
        raise DataError(f"{folder} is a transcoder, which sae-bench would take for an SAE; give another SAE")
    hashes = sha256_file(weights), sha256_file(folder / "cfg.json")
    return Subject(folder.resolve(), hook, model, *hashes, **texts)


def check_installed() -> None:
    """Raise ModelError where sae-bench, or what all of it imports, is not installed."""
    for package in ("sae_bench", "tabulate"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(f"{package.replace('_', '-')} is not installed; run make saebench")


def planned(asked: Sequence[str], settings: dict[str, Any], subject: Subject, download: bool) -> dict[str, list[str]]:
    """What each evaluation asked for, all where none is, lacks here; ParameterError for an unknown one."""
    try:
        for name in (*asked, *settings):
            one_of(name, EVALUATIONS, "evaluation")
    except ValueError as error:
        raise ParameterError(f"eval saebench: {error}") from None
    chosen = dict.fromkeys(asked or EVALUATIONS)
    return {name: lacking(name, subject, settings.get(name, {}), download) for name in chosen}


def lacking(name: str, subject: Subject, settings: dict[str, Any], download: bool) -> list[str]:
    """What an evaluation needs and does not find here, each as a phrase; with `download` the hub counts as here."""
    needs = EVALUATIONS[name]
    other_hook = needs.hook and subject.hook_name.split(".", 2)[-1] != needs.hook
    other_model = needs.models and subject.label not in needs.models
    absent = [package for package in needs.packages if importlib.util.find_spec(package) is None]
    missing = [] if download else [data for data in hub_data(name, settings) if not revisions(data)]
    problems = {
        f"the hook {needs.hook}, but this SAE reads {subject.hook_name}": other_hook,
        f"one of the models {', '.join(needs.models)}, not {subject.label}": other_model,
        f"{needs.file} in the working folder ({needs.source})": needs.file and not Path(needs.file).exists(),
        f"a key in ${needs.variable}": needs.variable and not os.environ.get(needs.variable),
        f"the Python modules {', '.join(absent)}, which are not installed": absent,
        f"the data sets {', '.join(missing)}, which are not in the local hub cache; --download fetches them": missing,
    }
    return [problem for problem, applies in problems.items() if applies]


def hub_data(name: str, settings: dict[str, Any]) -> list[str]:
    """The hub data sets that an evaluation reads with these settings."""
    given = settings.get({"core": "dataset", "autointerp": "dataset_name", "mdl": "dataset_name"}.get(name, "-"))
    if name in {"sparse_probing", "scr", "tpp"}:
        given = settings.get("dataset_names")
    names = [given] if isinstance(given, str) else given or EVALUATIONS[name].data_sets
    return list(dict.fromkeys(re.sub(r"_class_set\d+$|_sentiment$", "", data) for data in names))


@functools.cache
def revisions(data_set: str) -> list[str]:
    """What the caches of datasets and huggingface_hub hold of a data set: fingerprints and commits. Asks no hub."""
    import datasets  # noqa: PLC0415 - takes a second to import
    import huggingface_hub  # noqa: PLC0415

    name = data_set.replace("/", "___").lower()
    prepared = [path for path in Path(datasets.config.HF_DATASETS_CACHE).glob("*") if path.name.lower() == name]
    found = [arrow.parent.name for folder in prepared for arrow in folder.rglob("*.arrow")]
    try:
        repos = huggingface_hub.scan_cache_dir().repos
    except huggingface_hub.errors.CacheNotFound:
        repos = frozenset()
    held = [revision for repo in repos if (repo.repo_type, repo.repo_id) == ("dataset", data_set)
            for revision in repo.revisions]  # fmt: skip
    texts = {".md", ".py", ""}
    found += [r.commit_hash for r in held if any(file.file_path.suffix not in texts for file in r.files)]
    return sorted(set(found))


def evaluate(
    name: str, subject: Subject, settings: dict[str, Any], *, download: bool = False, out: Path | None = None
) -> Path:
    """Run one evaluation in a process of its own, or find its result; the folder that holds it.

    That is a folder of the cache, named by content, or its copy under `out`. Raises an error of this library with
    what the process said last; `log_of(name, subject)` holds all that it said.
    """
    needs, log = EVALUATIONS[name], log_of(name, subject)
    data = hub_data(name, settings) or [OPENWEBTEXT] * (name == "core")
    own_texts = data == [OPENWEBTEXT] and not download and not revisions(OPENWEBTEXT)
    job = asdict(subject) | {
        "evaluation": name,
        "module": f"sae_bench.evals.{needs.module or name}.main",
        "folder": str(subject.folder),
        "model": subject.model.model_dump(),
        "label": subject.label,
        "settings": settings,
        "data": {} if own_texts else {one: revisions(one) for one in data},
        "texts": subject.texts if own_texts else [],
        "probing": subject.probing if name == "sparse_probing_sae_probes" else [],
        "file": [needs.file, str(Path(needs.file).resolve())] if needs.file else None,
    }
    write_json(log.with_suffix(".json"), job)
    environment = os.environ | {
        "HUSAI_CACHE": str(cache_folder().absolute()),
        "HF_HUB_OFFLINE": "0" if download else "1",  # else a missing file would be asked for, again and again
        "JAXTYPING_DISABLE": "1",  # sae-bench's annotations ask for another class of model than TransformerBridge
        "TQDM_DISABLE": "1",
        "PYTHONUNBUFFERED": "1",  # the last line of the log is then what was said last
    }
    command = [sys.executable, "-m", "husai_lib.measures.saebench_job", str(log.with_suffix(".json"))]
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file, check=False)
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if ended.returncode == 0:
        made = Path(next(line for line in reversed(lines) if line.startswith("result: ")).removeprefix("result: "))
        place = made.relative_to(cache_folder().absolute() / "saebench")
        return Path(shutil.copytree(made, out / place, dirs_exist_ok=True)) if out else made
    said = lines[-1] if lines and ended.returncode > 0 else "the process was killed (out of memory?)"
    kind, _, sentence = said.partition(": ")
    raised = getattr(errors, kind.removeprefix("husai_lib.errors."), None)
    raise raised(sentence) if raised else ModelError(f"sae-bench's {name} failed: {said} (log: {log})")


def log_of(name: str, subject: Subject) -> Path:
    """The file that holds what an evaluation of these weights said last time."""
    return cache_folder().absolute() / "saebench" / subject.weights_sha256[:12] / f"{name}.log"


def subject_of(
    given: str,
    evidence: Path,
    *,
    condition: str | None = None,
    seed: int | None = None,
    model: str | None = None,
    prepend_bos: bool | None = None,
) -> Subject:
    """The SAE of a SAELens folder, or of a run in `evidence`; ParameterError for options of the other."""
    is_folder = (Path(given) / "cfg.json").exists()
    if any(option is not None for option in ((condition, seed) if is_folder else (model, prepend_bos))):
        what = "a SAELens folder takes no --condition and --seed" if is_folder else "a run takes no --model and no BOS"
        raise ParameterError(f"{given}: {what}; leave them out")
    if is_folder:
        return folder_subject(Path(given), model, prepend_bos)
    return run_subject(find_run(evidence, given), condition, seed)
