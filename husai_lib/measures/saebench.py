"""`husai eval saebench`: the SAE, the evaluations of the package sae-bench and their data, and a process for each.

sae-bench is installed without its own requirements, which would break this environment, and reads data sets of the
hub. What is missing is reported before anything runs.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE

from husai_lib.errors import DataError, IntegrityError, ModelError, ParameterError
from husai_lib.evidence.cache import cache_folder, open_entry
from husai_lib.evidence.runs import find_run
from husai_lib.files import REPOSITORY, sha256_file
from husai_lib.params.inputs import ModelParams
from husai_lib.params.sections import Section, check

OPENWEBTEXT, RAVEL = "Skylion007/openwebtext", "adamkarvonen/ravel_prompts"
BIOS, REVIEWS = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"
EVALUATIONS: dict[str, tuple[str, ...]] = {
    "core": (OPENWEBTEXT,),
    "absorption": (),
    "sparse_probing_sae_probes": (),
    "meta_structure": (),
    "sparse_probing": (BIOS, REVIEWS, "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl"),
    "scr": (BIOS, REVIEWS),
    "tpp": (BIOS, REVIEWS),
    "ravel": (RAVEL,),
    "unlearning": ("wikitext", "cais/wmdp", "cais/mmlu"),
    "autointerp": ("monology/pile-uncopyrighted",),
    "mdl": ("HuggingFaceFW/fineweb",),
}
"""The data sets of the hub that each evaluation reads."""
MODELS = {"ravel": ("gemma-2-2b", "pythia-160m-deduped"), "unlearning": ("gemma-2-2b-it", "gemma-2-9b-it")}
"""The only language models that these evaluations accept."""
CORPUS = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
"""The text that `unlearning` reads below the current folder; the authors of WMDP give it on request."""


class Subject(Section):
    """The SAELens folder that is evaluated, and the language model whose activations it explains."""

    folder: Path
    weights_sha256: str
    hook_name: str
    model: ModelParams
    texts: list[str] = ["100_news_fake", "48_cm_correct", "89_glue_mrpc"]  # noqa: RUF012 -- pydantic copies it
    """Data sets of sae-probes whose texts `core` reads where openwebtext is not in the local cache."""

    @property
    def label(self) -> str:
        """The model's name for sae-bench, which names files after it: without folders, and random weights marked."""
        name = self.model.name.removeprefix("random:")
        return "random-" * (name != self.model.name) + Path(name).name.removesuffix(".gguf")


def subject_of(given: str, evidence: Path, model: str | None = None, prepend_bos: bool | None = None) -> Subject:
    """The SAE of a SAELens folder, or the selected candidate of a run in `evidence`, its weights verified."""
    if (Path(given) / "cfg.json").exists():
        return folder_subject(Path(given), model, prepend_bos)
    run = find_run(evidence, given)
    if (model, prepend_bos) != (None, None):
        raise ParameterError(f"{run.name} knows its language model; leave --model and --prepend-bos out")
    selected = run.record("selection").summary["selected"]
    if not selected or "/" in selected["source"]:
        raise DataError(f"{run.name} selected no candidate of its own; name another run or the folder of an SAE")
    params = run.record("activations").data["parameters"]
    own, folder = ModelParams(**params["model"]), open_entry("saes", selected["key"]).path
    subject = folder_subject(folder, own.name, own.prepend_bos)
    if subject.weights_sha256 != selected["weights_sha256"]:
        raise IntegrityError(f"the weights in {folder} are not those of {run.name}; run the cycle again")
    return subject.model_copy(update={"model": own, "texts": params["texts"]["held_out"]})


def folder_subject(folder: Path, model: str | None, prepend_bos: bool | None) -> Subject:
    """A SAELens folder, its model and BOS by its metadata unless given; DataError if it cannot be evaluated."""
    config, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    try:
        metadata = json.loads(config.read_text(encoding="utf-8"))
        metadata |= metadata.get("metadata") or {}  # older SAELens wrote the metadata beside the other keys
        weights_sha256 = sha256_file(weights)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} has no readable {config.name} and {weights.name} ({error}); name another") from None
    hook, output = metadata.get("hook_name") or "", metadata.get("hook_name_out")
    if not hook or "+" in hook or output not in {None, hook}:
        what = f"reads {hook or 'a hook it does not name'} and reconstructs {output or 'the same'}"
        raise DataError(f"{folder} {what}; sae-bench needs an SAE of one hook, so give another")
    own = {"name": metadata.get("model_name"), "prepend_bos": metadata.get("prepend_bos")}
    own |= {key: value for key, value in {"name": model, "prepend_bos": prepend_bos}.items() if value is not None}
    if None in own.values():
        raise ParameterError(f"{config} does not name the language model and its BOS; add --model and --prepend-bos")
    params = check(ModelParams, own, "--model")
    return Subject(folder=folder.resolve(), weights_sha256=weights_sha256, hook_name=hook, model=params)


def planned(asked: Sequence[str], settings: dict[str, Any], subject: Subject, download: bool) -> dict[str, str]:
    """What each evaluation in `asked`, by default all, lacks here; empty if nothing.

    Raises ModelError if sae-bench is not installed and ParameterError for an unknown evaluation.
    """
    if any(importlib.util.find_spec(package) is None for package in ("sae_bench", "tabulate")):
        raise ModelError("sae-bench is not installed; run make saebench")
    if unknown := [name for name in (*asked, *settings) if name not in EVALUATIONS]:
        known = ", ".join(EVALUATIONS)
        raise ParameterError(f"eval saebench: evaluation {unknown[0]!r} is unknown; choose among {known}")
    return {name: _lacking(name, settings.get(name, {}), subject, download) for name in asked or EVALUATIONS}


def _lacking(name: str, settings: dict[str, Any], subject: Subject, download: bool) -> str:
    models, hook = MODELS.get(name, (subject.label,)), subject.hook_name
    missing = [data for data in hub_data(name, settings) if data != OPENWEBTEXT and not revisions(data)]
    lacking = {
        f"the model {' or '.join(models)}, but this SAE is of {subject.label}": subject.label not in models,
        f"the hook hook_resid_post, but this SAE reads {hook}":
            name == "absorption" and not hook.endswith("hook_resid_post"),
        "a key in $OPENAI_API_KEY": name == "autointerp" and not os.environ.get("OPENAI_API_KEY"),
        f"the file {CORPUS}, which the authors of WMDP give on request": name == "unlearning" and not CORPUS.exists(),
        f"the data sets {', '.join(missing)}, which are not in the local cache; --download fetches them":
            missing and not download,
    }  # fmt: skip
    return "; ".join(what for what, applies in lacking.items() if applies)


def hub_data(name: str, settings: dict[str, Any]) -> list[str]:
    """The hub data sets that an evaluation reads with these settings."""
    named = settings.get("dataset") or settings.get("dataset_name") or settings.get("dataset_names")
    names = EVALUATIONS[name] if named is None or name == "sparse_probing_sae_probes" else named
    names = [names] if isinstance(names, str) else names
    return list(dict.fromkeys(data.split("_class_set")[0].removesuffix("_sentiment") for data in names))


def revisions(data_set: str) -> list[str]:
    """Fingerprints of a data set in the cache of `datasets`; of RAVEL's plain files, their commits in the hub's."""
    import datasets  # noqa: PLC0415 - takes a second to import

    folder, files = Path(datasets.config.HF_DATASETS_CACHE) / data_set.replace("/", "___"), "*.arrow"
    if data_set == RAVEL:
        folder, files = Path(HF_HUB_CACHE) / f"datasets--{data_set.replace('/', '--')}" / "snapshots", "*.json"
    return sorted({path.parent.name for path in folder.rglob(files)})


def log_of(name: str, subject: Subject) -> Path:
    """The log of the last run of an evaluation on these weights."""
    return cache_folder().absolute() / "saebench" / subject.weights_sha256[:12] / f"{name}.log"


def evaluate(
    name: str, subject: Subject, settings: dict[str, Any], *, download: bool = False, out: Path | None = None
) -> Path:
    """Run an evaluation in its own process unless it is cached; the result's folder in the cache or its copy in `out`.

    Raises ModelError with the last line of the log if the process fails.
    """
    log, data, links = log_of(name, subject), hub_data(name, settings), {}
    if name == "ravel":  # sae-bench's own download fails with this version of the hub's client
        links["artifacts/ravel/base"] = snapshot_download(RAVEL, repo_type="dataset", local_files_only=not download)
    if name == "unlearning":
        links[str(CORPUS)] = str(CORPUS.resolve())
    own_texts = data == [OPENWEBTEXT] and not download and not revisions(OPENWEBTEXT)
    job = subject.model_dump(mode="json") | {
        "evaluation": name,
        "label": subject.label,
        "settings": settings,
        "links": links,
        "texts": subject.texts if own_texts else [],
        "data": {} if own_texts else {one: revisions(one) for one in data},
    }
    environment = os.environ | {
        "HUSAI_CACHE": str(cache_folder().absolute()),
        "HF_HUB_OFFLINE": "0" if download else "1",  # without it, missing files are requested again and again
        "JAXTYPING_DISABLE": "1",  # sae-bench's annotations require another class of model than TransformerBridge
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, "-u", "-m", "husai_lib.measures.saebench_job", json.dumps(job)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file, check=False)
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if ended.returncode != 0:
        reason = lines[-1] if lines and ended.returncode > 0 else "the process was killed (out of memory?)"
        raise ModelError(f"sae-bench's {name} failed: {reason.removeprefix('husai_lib.errors.')} (log: {log})")
    result = Path(next(line for line in reversed(lines) if line.startswith("result: ")).removeprefix("result: "))
    return Path(shutil.copytree(result, out.joinpath(*result.parts[-3:]), dirs_exist_ok=True)) if out else result
