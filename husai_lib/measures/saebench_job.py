"""One evaluation of sae-bench in this process: our model and SAE handed over as objects, the result named by content.

sae-bench loads its model by a hub name and skips a result whose file name exists. So its loader is replaced by ours,
and it always writes into a fresh folder, which the cache moves into place whole.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import json
import os
import random
import shutil
import sys
import tempfile
import typing
from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer

from husai_lib.activations.language_model import LanguageModel, open_model
from husai_lib.activations.texts import drawn_texts
from husai_lib.errors import IntegrityError, ParameterError
from husai_lib.evidence.cache import Entry, cached
from husai_lib.evidence.runs import utc_now
from husai_lib.files import read_json, sha256_file, write_json
from husai_lib.params.inputs import ModelParams
from husai_lib.params.sections import one_of
from husai_lib.saes.trained import load_sae
from husai_lib.tasks import device

MODULE = "husai_lib.measures.saebench_job"
SEED = 42
CORE = {
    "n_eval_reconstruction_batches": 200,
    "n_eval_sparsity_variance_batches": 2000,
    "eval_batch_size_prompts": 16,
    "context_size": 128,
    "compute_featurewise_density_statistics": True,
    "compute_featurewise_weight_based_metrics": True,
    "exclude_special_tokens_from_reconstruction": True,
}
"""What sae-bench's own script gives to `core`; `core` alone has no configuration with defaults of use."""
NOTE = (
    "explained_variance subtracts a mean of squares where the square of the mean belongs, so it is not that of records"
)
"""Of sae-bench 0.6.0: `core` takes `E|x|^2` for the variance, all but a small constant."""
OUR_TEXTS = "; the text is not openwebtext but these data sets of sae-probes, so published scores cannot be compared"


def result(job: dict[str, Any]) -> Entry:
    """The result of an evaluation, computed unless the cache holds the one of these weights, model and settings."""
    model = open_model(ModelParams(**job["model"]), device())
    source = Path(job["file"][1]) if job["file"] else None
    inputs = {key: value for key, value in job.items() if key not in {"folder", "file", "model"}} | {
        "model": model.identity,
        "file": [sha256_file(p) for p in sorted([source, *source.rglob("*")]) if p.is_file()] if source else [],
        "sae_bench": importlib.metadata.version("sae-bench"),
        "device": device(),
    }
    kind = f"saebench/{job['weights_sha256'][:12]}/{job['evaluation']}"
    return cached(kind, MODULE, inputs, functools.partial(_make, job=job, model=model, inputs=inputs))


def _make(folder: Path, job: dict[str, Any], model: LanguageModel, inputs: dict[str, Any]) -> None:
    """Run the evaluation in a fresh working folder and keep its JSON as it is; SystemExit if it wrote none."""
    sae = _sae(job)
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        if job["file"]:
            link = Path(job["file"][0])
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(job["file"][1])
        bridge = model.bridge
        bridge.cfg.model_name = job["label"]  # a path otherwise, and sae-bench writes files below it
        bridge.cfg.default_prepend_bos = model.params.prepend_bos
        torch.manual_seed(SEED)
        random.seed(SEED)
        main = importlib.import_module(job["module"])
        _hand_over(main, bridge)
        settings = _run(main, sae, job, model)
        written = sorted(Path("results").rglob("*_eval_results.json"))
        if not written:
            raise SystemExit(1)  # sae-bench has said why, as the last thing it said
        for path in written:
            shutil.copy(path, folder)
    note = NOTE * (job["evaluation"] == "core") + OUR_TEXTS * bool(job["texts"])
    about = {"settings": settings, "note": note, "finished_utc": utc_now()}
    write_json(folder / "husai.json", inputs | about)


def _sae(job: dict[str, Any]) -> Any:
    """The SAE with its own encoder and what sae-bench reads in its metadata; IntegrityError for other weights."""
    folder = Path(job["folder"])
    sae = load_sae(folder).to(device())
    if sha256_file(folder / "sae_weights.safetensors") != job["weights_sha256"]:
        raise IntegrityError(f"{folder} changed while it was read; run the command again")
    sae.cfg.metadata.model_name = job["label"]
    sae.cfg.metadata.prepend_bos = job["model"]["prepend_bos"]
    return sae


def _hand_over(main: Any, bridge: Any) -> None:
    """Replace sae-bench's loader of language models; this process ends with the evaluation.

    `absorption` keeps probes and scores in the installed package, by name; here they go to the working folder.
    """
    HookedTransformer.from_pretrained_no_processing = lambda *_, **__: bridge
    scores = {"experiment_dir": "scores", "probes_dir": "probes"}
    absorbed = {"experiment_dir": "absorbed", "sparse_probing_experiment_dir": "scores", "probes_dir": "probes"}
    folders = {"run_k_sparse_probing_experiment": scores, "run_feature_absortion_experiment": absorbed}
    for name, where in folders.items():
        if hasattr(main, name):
            setattr(main, name, functools.partial(getattr(main, name), **where))


def _run(main: Any, sae: Any, job: dict[str, Any], model: LanguageModel) -> dict[str, Any]:
    """Call the evaluation; the settings it was given."""
    name, dtype = job["evaluation"], model.params.dtype
    selected = [(f"{job['label']}_{job['weights_sha256'][:12]}", sae)]
    if name == "core":
        arguments = inspect.signature(main.multiple_evals).parameters
        texts = _texts(job["texts"], model) if job["texts"] else {}
        settings = _known(CORE | texts | job["settings"], arguments, name)
        main.multiple_evals(selected, output_folder="results", dtype=dtype, device=device(), **settings)
        return settings
    config = typing.get_type_hints(main.run_eval)["config"]
    known = {field.name for field in dataclasses.fields(config)}
    usual = {"model_name": job["label"], "llm_dtype": dtype, "llm_batch_size": 32, "random_seed": SEED}
    usual |= {"perform_scr": name == "scr"} | ({"dataset_names": job["probing"]} if job["probing"] else {})
    settings = {key: value for key, value in usual.items() if key in known} | _known(job["settings"], known, name)
    key = {"api_key": os.environ["OPENAI_API_KEY"]} if name == "autointerp" else {}
    main.run_eval(config(**settings), selected, device=device(), output_path="results", **key)
    return settings


def _known(settings: dict[str, Any], known: Iterable[str], evaluation: str) -> dict[str, Any]:
    """The settings, each a field that the evaluation has; ParameterError names the nearest."""
    try:
        for key in settings:
            one_of(key, known, f"setting of {evaluation}")
    except ValueError as error:
        raise ParameterError(f"--set {evaluation}: {error}") from None
    return settings


def _texts(names: list[str], model: LanguageModel) -> dict[str, Any]:
    """Write texts of sae-probes into the working folder: its name, and as many batches as read them about once."""
    texts = [text.text for text in drawn_texts(names, SEED)]
    Path("texts").mkdir()
    lines = [json.dumps({"text": text}) for text in texts]
    Path("texts/train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokens = sum(map(len, model.tokenize(texts, model.bridge.cfg.n_ctx)))
    batches = max(1, tokens // (CORE["eval_batch_size_prompts"] * CORE["context_size"]))
    counts = ("n_eval_reconstruction_batches", "n_eval_sparsity_variance_batches")
    return {"dataset": str(Path("texts").absolute())} | {key: min(CORE[key], batches) for key in counts}


if __name__ == "__main__":
    sys.stdout.write(f"result: {result(read_json(Path(sys.argv[1]))).path}\n")
