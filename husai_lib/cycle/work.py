"""The work of a cycle's steps, counted from its parameters: SAEs, amounts of each kind of work, bytes."""

import os
from dataclasses import dataclass

from husai_lib.params.catalogue import hidden_size, layer_count, local_path
from husai_lib.params.conditions import Condition, SaeParams, baseline_seeds, baseline_shapes
from husai_lib.params.cycle import CycleParams

Saes = list[tuple[SaeParams, int]]
"""Shapes of SAEs, each with how many there are."""
CONTROL_ROWS = 4096
"""Held-out rows of a control at most."""
PROMPTS, STORY_TOKENS, VOCABULARY = 5000, 256, 50_000
"""Prompts of a probing data set and tokens of a story, at most; tokens that a language model knows, about."""
MAPPED_BYTES = 2 * 160_000_000
"""Banks larger than half of this are read row by row; two are read at most."""
MATCHING_BYTES = 4
"""Of each pair of latents that are matched: the table of costs, twice."""


@dataclass(frozen=True)
class Work:
    """What a step of a cycle does."""

    candidates: Saes
    """SAEs that are trained and measured."""
    baselines: Saes
    """The same by SAELens' trainer."""
    others: Saes
    """SAEs that are trained and not measured by both benchmarks: nulls, references, controls, studies."""
    units: dict[str, float]
    """Amount of each kind of work; only the ratio of two amounts of a kind has a meaning."""

    @property
    def trained(self) -> int:
        """Number of SAEs that are trained."""
        return sum(number for _, number in [*self.candidates, *self.baselines, *self.others])


def width_of(params: CycleParams) -> int | None:
    """Dimensions of a row of activations; None where the model is not here yet."""
    path = local_path(params.model.name.removeprefix("random:"))
    width = hidden_size(path) if path else None
    return width and width * (params.activations.hook_name.count("+") + 1)


def work_of(step: str, params: CycleParams, chosen: Condition | None = None) -> Work:
    """What a step does. Until a condition is `chosen`, confirmation and controls count as for the largest there is."""
    candidates, baselines, others = _saes(step, params, chosen or _largest(params))
    grid, texts, read, stress = params.scaling, params.texts, params.activations, params.stress
    width, layers = width_of(params) or 1, len(grid.hook_layers) if grid and step == "scaling" else 1
    sets, ood, fits = len(texts.probing), len(texts.ood) if stress.ood else 0, len(params.probing.ks)
    splits, measured = params.probing.splits, [*candidates, *baselines]
    units = {"": 1.0 + _size(measured) * read.held_out_rows * width / 1e12}
    if step == "activations":
        units["texts"] = read.training_rows + read.held_out_rows + read.validation_rows
        units["data sets read"] = sets + 2 * ood
    elif step == "scaling" and grid:
        units["texts"] = layers * (grid.tokens[-1] + read.held_out_rows)
        units["data sets read"] = layers * sets
    elif step == "stress":
        models = stress.random_models if stress.random_model else 0
        units["texts"] = models * (read.training_rows + min(read.held_out_rows, CONTROL_ROWS))
        units["data sets probed"] = ood * fits * _at_last(params)
    units["members trained"] = width * _shown([*candidates, *others])
    units["baselines trained"] = width * _shown(baselines)
    if measured:
        fresh = step in ("baselines", "scaling")  # other steps find the probes of the raw activation in the cache
        units["data sets probed on the raw activation"] = layers * sets * (1 + splits) if fresh else 0
        units["data sets probed"] = sum(number for _, number in measured) * sets * (1 + splits) * fits
        units["data sets with ceilings"] = _size(measured) * sets * splits
        study = params.contrastive.study
        of_study = len(study.ks) * (2 * sum(study.widths) + sum(study.random_widths)) if step == "baselines" else 0
        scored = _size(measured) * (2 if step == "consistency" else 1) + of_study  # twice: validation stories
        units["SAEs scored on stories"] = scored * params.contrastive.max_rows * width
    for kind in {"texts", "data sets read"} & units.keys():
        units[kind] *= width**2
    return Work(candidates, baselines, others, {kind: float(amount) for kind, amount in units.items() if amount})


def _saes(step: str, params: CycleParams, chosen: Condition) -> tuple[Saes, Saes, Saes]:
    sweep, grid = params.consistency, params.scaling
    candidates: Saes = []
    baselines: Saes = []
    others: Saes = []
    if step in params.trained:
        conditions, seeds = params.trained[step]
        candidates = [(one, len(seeds)) for one in conditions]
        others = list(candidates) if len(seeds) > 1 else []
        if step == "consistency" and sweep:  # the Gaussian null has no objective, so it is the same at every weight
            others = [(one, len(seeds) + len(sweep.frozen)) for one in sweep.conditions]
    elif step == "baselines":
        shapes = baseline_shapes(one for conditions, _ in params.trained.values() for one in conditions)
        baselines = [(shapes[name], len(own)) for name, own in baseline_seeds(params.trained.values()).items()]
        study = params.contrastive.study
        recipe = params.sae.model_dump() | {"name": "topk", "architecture": "topk", "k": min(study.ks)}
        others = [(Condition(**recipe | {"d_sae": width}), len(study.ks)) for width in study.widths]
    elif step == "scaling" and grid:
        seeds = grid.seeds or params.seeds
        candidates = baselines = [(one, len(seeds)) for one in grid.conditions()]
        others = list(candidates) if len(seeds) > 1 else []
    elif step == "confirmation" and (fresh := len(params.confirmation.seeds)):
        candidates = baselines = others = [(chosen, fresh)]
    elif step == "stress":
        controls = (params.stress.random_models if params.stress.random_model else 0) + params.stress.transcoder
        others = [(chosen, controls * _at_last(params))] if controls else []
    return candidates, baselines, others


def _largest(params: CycleParams) -> Condition:
    return max((one for conditions, _ in params.trained.values() for one in conditions), key=lambda c: _shown([(c, 1)]))


def _at_last(params: CycleParams) -> int:
    """The number of seeds that controls have."""
    return len(params.confirmation.seeds) or len(params.seeds)


def _size(saes: Saes) -> int:
    return sum(number * one.d_sae for one, number in saes)


def _shown(saes: Saes) -> int:
    """Rows shown in training, times latents."""
    return sum(number * one.training_samples * one.d_sae for one, number in saes)


# ---------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------


def disk_of(step: str, params: CycleParams) -> int | None:
    """Bytes that a step adds to the cache, at most; None where the model is not here yet, as its width is not known."""
    if not (width := width_of(params)):
        return None
    read, grid, work = params.activations, params.scaling, work_of(step, params)
    rows = 0
    if step == "activations":
        prompts = len(params.texts.probing) * PROMPTS + 2 * len(params.texts.ood) * params.stress.ood_max_rows
        stories = 2 * params.contrastive.max_rows * STORY_TOKENS * (2 if read.validation_rows else 1)
        hooks = 3 if params.stress.transcoder else 1
        rows = (hooks + 1) * read.training_rows + 2 * read.held_out_rows + read.validation_rows + prompts + stories
    elif step == "scaling" and grid:
        rows = len(grid.hook_layers) * (2 * sum(grid.tokens) + read.held_out_rows + len(params.texts.probing) * PROMPTS)
    elif step == "stress" and params.stress.random_model:
        rows = 2 * params.stress.random_models * (read.training_rows + CONTROL_ROWS)
    elif step == "frontier" or step in params.trained:
        rows = read.training_rows  # the Gaussian null
    converted = _model_bytes(params) if step == "activations" and params.model.name.endswith(".gguf") else 0
    saes = sum(number * 8 * one.d_sae * width for one, number in [*work.candidates, *work.baselines, *work.others])
    return 4 * rows * width + saes + converted


def memory_of(step: str, params: CycleParams, chosen: Condition | None = None) -> int | None:
    """Bytes of a step's arrays on a CPU where they are most, beside the libraries; None as in `disk_of`."""
    if not (width := width_of(params)):
        return None
    jobs = int(os.environ.get("HUSAI_JOBS") or os.cpu_count() or 1)
    work = work_of(step, params, chosen)
    saes = [*work.candidates, *work.baselines, *work.others]
    widest = max((one.d_sae for one, _ in saes), default=0)
    loaded = sum(number * 8 * one.d_sae * width for one, number in saes)
    training = jobs * max((training_bytes(one, width) for one, _ in saes), default=0)
    probing = jobs * PROMPTS * (4 * widest + 8 * width)
    matching = MATCHING_BYTES * widest**2 if any(number > 1 for _, number in saes) else 0
    model = _model_bytes(params) if step in ("activations", "scaling", "stress") else 0
    mapped = 4 * width * params.activations.training_rows * (2 if saes else 1)
    return loaded + max(training, probing, matching, model) + min(mapped, MAPPED_BYTES)


def training_bytes(sae: SaeParams, width: int) -> int:
    """Bytes of one SAE in training: weights, gradients and two moments, and the tensors of a batch."""
    return 4 * (8 * sae.d_sae * width + sae.batch_size * (6 * sae.d_sae + 16 * width))


def _model_bytes(params: CycleParams) -> int:
    """Bytes of the language model's float32 weights, by its shape."""
    path = local_path(params.model.name.removeprefix("random:"))
    layers, width = (layer_count(path) or 0, hidden_size(path) or 0) if path else (0, 0)
    return 4 * (12 * layers * width**2 + VOCABULARY * width)
