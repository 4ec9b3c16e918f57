"""One evaluation of sae-bench in this process, with our model and SAE as objects; the result is named by content.

sae-bench loads its model by a hub name and skips a result whose file name exists. So its loader is replaced by ours,
and it always writes into a fresh folder, which the cache moves into place as a whole.
"""

import functools
import importlib.metadata
import inspect
import json
import os
import random
import shutil
import sys
import tempfile
import typing
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer

from husai_lib.activations.language_model import LanguageModel, open_model
from husai_lib.activations.texts import drawn_texts
from husai_lib.evidence.cache import Entry, cached
from husai_lib.files import sha256_file
from husai_lib.params.inputs import ModelParams
from husai_lib.params.sections import one_of
from husai_lib.saes.trained import inference_code, load_sae
from husai_lib.tasks import device

SEED = 42
CORE: dict[str, Any] = {
    "n_eval_reconstruction_batches": 200,
    "n_eval_sparsity_variance_batches": 2000,
    "eval_batch_size_prompts": 16,
    "compute_featurewise_density_statistics": True,
    "compute_featurewise_weight_based_metrics": True,
    "exclude_special_tokens_from_reconstruction": True,
}
"""Settings of `core` in sae-bench's own script; without the two of latents it fails."""


def result(job: dict[str, Any]) -> Entry:
    """The result of an evaluation, computed unless the cache holds that of the same weights, model and settings."""
    model, source = open_model(ModelParams(**job["model"]), device()), Path(job["folder"])
    job |= {"weights_sha256": sha256_file(source / "sae_weights.safetensors")}  # may be others than at the start
    inputs = {key: value for key, value in job.items() if key not in {"folder", "links"}} | {
        "linked": [sha256_file(Path(target)) for target in job["links"].values() if Path(target).is_file()],
        "cfg_sha256": sha256_file(source / "cfg.json"),
        "model": model.identity,
        "sae_bench": importlib.metadata.version("sae-bench"),
        "device": device(),
        **inference_code(source),
    }

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
            _run(job, model, load_sae(source).to(device()))
            if not list(Path("results").rglob("*_eval_results.json")):
                raise SystemExit(1)  # sae-bench has given the reason in its last line
            shutil.copytree("results", folder, dirs_exist_ok=True)

    kind = f"saebench/{job['weights_sha256'][:12]}/{job['evaluation']}"
    return cached(kind, "husai_lib.measures.saebench_job", inputs, make)


def _run(job: dict[str, Any], model: LanguageModel, sae: Any) -> None:
    """Call the evaluation; it writes into the folder `results` of the current folder."""
    name, label, dtype, bridge = job["evaluation"], job["label"], model.params.dtype, model.bridge
    sae.cfg.metadata.model_name = bridge.cfg.model_name = label
    sae.cfg.metadata.prepend_bos = bridge.cfg.default_prepend_bos = model.params.prepend_bos
    HookedTransformer.from_pretrained_no_processing = lambda *_, **__: bridge
    for path, target in job["links"].items():
        Path(path).parent.mkdir(parents=True)
        Path(path).symlink_to(target)
    torch.manual_seed(SEED)
    random.seed(SEED)
    selected = [(f"{label}_{job['weights_sha256'][:12]}", sae)]
    main: Any = importlib.import_module(f"sae_bench.evals.{'scr_and_tpp' if name in {'scr', 'tpp'} else name}.main")
    if name == "core":
        known, usual = {*inspect.signature(main.multiple_evals).parameters}, CORE | _texts(job["texts"], model)
    else:
        config = typing.get_type_hints(main.run_eval)["config"]
        known = {*config.__dataclass_fields__}
        usual = {"model_name": label, "llm_dtype": dtype, "llm_batch_size": 32, "perform_scr": name == "scr"}
    for key in job["settings"]:
        one_of(key, known, f"setting of {name}")
    settings = {key: value for key, value in (usual | job["settings"]).items() if key in known}
    if name == "core":
        main.multiple_evals(selected, output_folder="results", dtype=dtype, device=device(), **settings)
        return
    if name == "absorption":  # by default it keeps probes and scores in the installed package
        where = {"experiment_dir": "scores", "probes_dir": "probes"}
        main.run_k_sparse_probing_experiment = functools.partial(main.run_k_sparse_probing_experiment, **where)
        where |= {"experiment_dir": "absorbed", "sparse_probing_experiment_dir": "scores"}
        main.run_feature_absortion_experiment = functools.partial(main.run_feature_absortion_experiment, **where)
    key = {"api_key": os.environ["OPENAI_API_KEY"]} if name == "autointerp" else {}
    main.run_eval(config(**settings), selected, device=device(), output_path="results", **key)


def _texts(names: list[str], model: LanguageModel) -> dict[str, Any]:
    """Write texts of sae-probes into the current folder; the settings of `core` that read them about once."""
    if not names:
        return {}
    texts, folder = [text.text for text in drawn_texts(names, SEED)], Path("texts").absolute()
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokens = sum(map(len, model.tokenize(texts, model.bridge.cfg.n_ctx)))
    batches = max(1, tokens // (CORE["eval_batch_size_prompts"] * 128))
    return {"dataset": str(folder)} | {key: min(n, batches) for key, n in CORE.items() if key.endswith("_batches")}


if __name__ == "__main__":
    sys.stdout.write(f"result: {result(json.loads(sys.argv[1])).path}\n")
