"""Baselines of candidates: an SAE that the parameters name, and SAEs trained by SAELens' own recipe.

A given SAE whose width and L0 are within 10 % of those of a condition is the baseline of that condition at every seed.
Other conditions get trained baselines, as CE-Bench scores of other widths and sparsities cannot be compared; the given
SAE is reported beside them. An SAE of other activations than the candidates' is refused.
"""

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors import SafetensorError
from transformer_lens.loading_from_pretrained import get_official_model_name

from husai_lib.activations.banks import Bank
from husai_lib.errors import DataError, ModelError
from husai_lib.evidence.cache import Entry, cached
from husai_lib.evidence.rows.base import GIVEN, is_matched
from husai_lib.files import REPOSITORY, sha256_file
from husai_lib.measures.evaluation import measure
from husai_lib.params.catalogue import local_path
from husai_lib.params.conditions import BaselineParams, Condition, SaeParams, baseline_seeds, baseline_shapes
from husai_lib.params.inputs import ModelParams
from husai_lib.params.sections import one_of
from husai_lib.saes.baseline import train_baseline
from husai_lib.saes.trained import Member, TrainedSae, load_sae
from husai_lib.tasks import Progress

FILES = ("cfg.json", "sae_weights.safetensors")
PICKLED = {"connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "goodfire", "qwen_scope"}
"""SAELens' loaders of releases whose weights are pickles, which this library never loads."""
NORMALISED = {"none", "layer_norm", "constant_norm_rescale"}
"""The normalisations that SAELens applies in `encode`; with others it encodes rows without normalising them."""
REMEDY = "give another SAE, or write baseline: train"
HUB = "a release needs a hub: go online, write baseline: train, or name a local SAE by baseline: {folder: …}"


def baseline_saes(
    params: BaselineParams,
    sweeps: Sequence[tuple[Sequence[SaeParams], Sequence[int]]],
    rows: Bank,
    held_out: Bank,
    *,
    model: ModelParams,
    progress: Progress | None = None,
) -> list[TrainedSae]:
    """The given SAE, if there is one, and a trained one for each seed and each (d_sae, k) that it does not match.

    `sweeps` holds conditions, each list with the seeds at which they are trained. SAEs are trained on `rows`; the given
    SAE's L0 is measured on `held_out`. Raises ModelError if the given SAE cannot be loaded, DataError if it is of other
    activations than those of `model` at the hook of `held_out`.
    """
    saes, seeds = [], baseline_seeds(sweeps)
    shapes = baseline_shapes(condition for conditions, _ in sweeps for condition in conditions)
    if params.given:
        given, matched = _given_sae(params, shapes, held_out, model)
        saes, shapes = [given], {name: shape for name, shape in shapes.items() if name not in matched}
    for name, shape in shapes.items():
        saes += train_baseline(params, shape, seeds[name], rows, progress, name=name)
    return saes


def _given_sae(
    params: BaselineParams, shapes: Mapping[str, SaeParams], held_out: Bank, model: ModelParams
) -> tuple[TrainedSae, list[str]]:
    """The given SAE and the names of the shapes that it matches."""
    remedy = REMEDY if params.folder else HUB
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the causes of SAELens' warnings are refused below
            entry = _in_cache(params)
            sae = load_sae(entry.path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise ModelError(f"baseline: {params.given} cannot be loaded: {reason}; {remedy}") from error
    note = _refusal_or_note(sae, params.given, held_out, model)
    d_sae, l0 = sae.cfg.d_sae, measure(sae, held_out).l0
    if l0 == 0:
        raise DataError(f"baseline: no latent of {params.given} fires on the held-out rows; {REMEDY}")
    matched = [name for name, s in shapes.items() if is_matched(d_sae, s.d_sae) and is_matched(l0, s.k)]
    nearest = min(shapes.values(), key=lambda shape: (abs(shape.d_sae / d_sae - 1), abs(shape.k / l0 - 1)))
    about = {"name": GIVEN, "architecture": sae.cfg.architecture(), "d_sae": d_sae, "k": nearest.k}
    condition = Condition.model_construct(**about)  # not validated: its architecture may be unknown to the registry
    use = "CE-Bench deltas at every seed are measured against it" if matched else "reported beside the baseline"
    return TrainedSae(Member(condition, 0), entry, "; ".join(filter(None, (params.given, use, note)))), matched


def _in_cache(params: BaselineParams) -> Entry:
    """The given SAE as an entry of the cache, keyed by its content and, if it is released, by its name."""
    with tempfile.TemporaryDirectory(prefix="husai-sae-") as temporary:
        folder = REPOSITORY / Path(params.folder).expanduser() if params.folder else Path(temporary)
        if not params.folder:
            _download(str(params.release), str(params.sae_id), folder)
        content = {name: sha256_file(folder / name) for name in FILES}

        def copy(made: Path) -> None:
            for name in FILES:
                shutil.copyfile(folder / name, made / name)

        return cached("saes", __name__, {"release": params.release, "sae_id": params.sae_id, "files": content}, copy)


def _download(release: str, sae_id: str, folder: Path) -> None:
    """Save an SAE of a release as a SAELens folder; ValueError if there is none, OSError if the hub is out of reach."""
    listed = get_pretrained_saes_directory()
    if "/" not in release:
        one_of(release, listed, "release")
    if release in listed:
        one_of(sae_id, listed[release].saes_map, "sae_id")
    if get_conversion_loader_name(release) in PICKLED:
        raise ValueError("its weights are a pickle, and none is ever loaded")
    SAE.from_pretrained(release, sae_id, device="cpu").save_model(folder)


def _refusal_or_note(sae: Any, given: str, rows: Bank, model: ModelParams) -> str:
    """Raise DataError for an SAE of other activations than `rows`; otherwise a note on what its metadata lack."""
    cfg, metadata, d_in = sae.cfg, sae.cfg.metadata, rows.shape[1]
    cycle = {"model_name": model.name, "hook_name": rows.hook_name, "prepend_bos": model.prepend_bos}
    stated = cycle | {key: metadata[key] for key in cycle if metadata[key] is not None}
    same_model = _is_model(str(stated["model_name"]), model.name)
    mistakes = {
        "has weights that are not finite": not all(weights.isfinite().all() for weights in sae.state_dict().values()),
        "is a transcoder, which reconstructs other activations than it reads":
            hasattr(cfg, "d_out") or (metadata.hook_name_out or metadata.hook_name) != metadata.hook_name,
        "reads whole texts, not rows": cfg.architecture() == "temporal",
        "reads the outputs of attention heads": cfg.reshape_activations != "none",
        f"reads {cfg.d_in} dimensions, but the rows at {rows.hook_name} have {d_in}": cfg.d_in != d_in,
        f"is of {stated['hook_name']}, but activations.hook_name is {rows.hook_name}":
            stated["hook_name"] != rows.hook_name,
        f"is of the model {stated['model_name']!r}, but model.name is {model.name!r}": same_model is False,
        "is of a model whose writing weights were centred, and the cycle's are not":
            (metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"),
        f"has prepend_bos {stated['prepend_bos']}, but model.prepend_bos is {model.prepend_bos}":
            stated["prepend_bos"] != model.prepend_bos,
        f"needs {cfg.normalize_activations}, which its encoder leaves out; fold it into the weights first":
            cfg.normalize_activations not in NORMALISED,
    }  # fmt: skip
    for mistake in (sentence for sentence, applies in mistakes.items() if applies):
        raise DataError(f"baseline: {given} {mistake}; {REMEDY}")
    unsaid = [key for key in cycle if metadata[key] is None]
    notes = {
        f"whether it is of the cycle's activations is unchecked: its metadata lack {', '.join(unsaid)}": unsaid,
        f"it is of {stated['model_name']!r}, with which the cycle's local model cannot be compared": same_model is None,
    }
    return "; ".join(note for note, applies in notes.items() if applies)


def _is_model(name: str, model: str) -> bool | None:
    """Whether an SAE's model is the cycle's; None if the latter is a file, whose name does not identify it."""
    if name == model or model.startswith("random:"):
        return name == model
    return None if local_path(model) else _official(name) == _official(model)


def _official(name: str) -> str:
    """TransformerLens' name of a model that it knows by several, without the organisation."""
    with contextlib.suppress(ValueError):
        name = get_official_model_name(name)
    return name.split("/")[-1].casefold()
