"""Training: one loop for every architecture, a bank of members at a time, and SAELens' own for the baseline."""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training import sae_trainer
from tqdm import tqdm

from husai_lib.activations.banks import Bank
from husai_lib.errors import DataError
from husai_lib.evidence.cache import cache_folder, cached, code_hash, is_cached, key_of
from husai_lib.files import canonical_json, sha256_text
from husai_lib.params.conditions import BaselineParams, Condition, SaeParams
from husai_lib.saes.architectures import TrainableSae
from husai_lib.saes.stack import Data, Stack, batches, stacks_of
from husai_lib.saes.trained import Member, TrainedSae
from husai_lib.tasks import Progress, device, run_tasks

sae_trainer.tqdm = functools.partial(tqdm, disable=True)  # its bar would stay in the report; steps tell their progress
GLOBAL_GENERATOR = threading.Lock()


def members(conditions: Sequence[Condition], seeds: Sequence[int]) -> list[Member]:
    """Every condition at every seed."""
    return [Member(condition, seed) for condition in conditions for seed in seeds]


def train_bank(
    bank_members: Sequence[Member], rows: Bank, target: Bank | None = None, progress: Progress | None = None
) -> list[TrainedSae]:
    """Train the members on the same rows, each with initial weights and data order of its own seed.

    With `target` the SAEs map `rows` to `target` (transcoders). A member that is in the cache is not
    trained again, and one whose training was killed goes on from its last checkpoint. A member ends with the
    same metrics alone or in a bank; on a CPU with the same weights. Raises DataError if training diverges.
    """
    data = Data.of(rows, target)
    stacks = stacks_of(bank_members, rows.rows.shape[1], data.target.rows.shape[1], device())
    tasks = [[bank_members[i] for i in stack] for stack in stacks]
    trained = run_tasks(functools.partial(_trained, data=data), tasks, "members trained", progress)
    saes = dict(zip(itertools.chain(*stacks), itertools.chain(*trained), strict=True))
    return [saes[i] for i in range(len(bank_members))]


def _trained(stack: Sequence[Member], data: Data) -> list[TrainedSae]:
    """The members of a stack, those trained together that are not in the cache."""
    inputs = [_inputs(member, data) for member in stack]
    missing = [i for i, given in enumerate(inputs) if not is_cached("saes", __name__, given)]
    saes = dict(zip(missing, _train([stack[i] for i in missing], data), strict=True)) if missing else {}
    hook_out = data.target.hook_name if data.target is not data.rows else None

    def make(folder: Path, i: int) -> None:
        metadata = {"hook_name": data.rows.hook_name, "hook_name_out": hook_out, "seed": stack[i].seed}
        saes[i].export(data.scale_in, data.scale_out, metadata).save_model(folder)

    entries = [cached("saes", __name__, given, functools.partial(make, i=i)) for i, given in enumerate(inputs)]
    return [TrainedSae(member, entry) for member, entry in zip(stack, entries, strict=True)]


def _train(stack: Sequence[Member], data: Data) -> list[TrainableSae]:
    key = sha256_text(canonical_json([key_of(__name__, _inputs(member, data)) for member in stack]))
    checkpoint = cache_folder() / "checkpoints" / f"{key}.safetensors"
    saes = Stack(stack, data, device()).train(checkpoint)
    checkpoint.unlink(missing_ok=True)
    for member, sae in zip(stack, saes, strict=True):
        if not all(torch.isfinite(p.norm()) for p in sae.parameters()):
            who = f"{member.condition.name} at seed {member.seed}"
            raise DataError(f"training of {who} diverged; lower its learning_rate")
    return saes


def _inputs(member: Member, data: Data) -> dict[str, Any]:
    architecture = member.condition.architecture
    return {
        "condition": member.condition.model_dump(exclude={"name"}),
        "seed": member.seed,
        "rows": [data.rows.hook_name, data.rows.sha256],
        "target": [data.target.hook_name, data.target.sha256],
        "architecture_code": code_hash(f"husai_lib.saes.architectures.{architecture}"),
        "device": device(),
    }


def train_baseline(
    params: BaselineParams,
    sae_params: SaeParams,
    seeds: Sequence[int],
    rows: Bank,
    progress: Progress | None = None,
    *,
    name: str = "baseline",
) -> list[TrainedSae]:
    """SAELens' own training class and `SAETrainer`, with its defaults, on the same rows, width, k and seeds."""
    condition = Condition(
        **sae_params.model_dump(include={"d_sae", "k", "training_samples", "batch_size"}),
        learning_rate=params.learning_rate,
        name=name,
        architecture=params.architecture,
    )
    function = functools.partial(_trained_by_saelens, params=params, rows=rows)
    return run_tasks(function, members([condition], seeds), "baselines trained", progress)


def _trained_by_saelens(member: Member, params: BaselineParams, rows: Bank) -> TrainedSae:
    inputs = {
        "trainer": "sae_lens",
        "params": params.model_dump(exclude={"folder", "release", "sae_id"}),
        "seed": member.seed,
        "rows": rows.sha256,
        "condition": member.condition.model_dump(exclude={"name"}),
        "device": device(),
    }

    def make(folder: Path) -> None:
        _saelens_fit(member, params, rows).save_inference_model(folder)

    return TrainedSae(member, cached("saes", __name__, inputs, make))


def _saelens_fit(member: Member, params: BaselineParams, rows: Bank) -> Any:
    condition, to = member.condition, device()
    fields = {
        "d_in": rows.rows.shape[1],
        "d_sae": condition.d_sae,
        "device": to,
        "normalize_activations": "expected_average_only_in",
    }
    match params.architecture:
        case "topk":
            config: Any = TopKTrainingSAEConfig(k=condition.k, **fields)
        case "batchtopk":
            config = BatchTopKTrainingSAEConfig(k=condition.k, **fields)
        case "standard":
            config = StandardTrainingSAEConfig(l1_coefficient=params.l1_coefficient, **fields)
    sae = _seeded(member.seed, lambda: TrainingSAE.from_dict(config.to_dict()))
    data = (rows.take(index) for index in batches(len(rows.rows), condition, member.seed))
    config = SAETrainerConfig(
        total_training_samples=condition.training_samples // condition.batch_size * condition.batch_size,
        train_batch_size_samples=condition.batch_size,
        lr=condition.learning_rate,
        lr_end=condition.learning_rate,
        device=to,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = sae_trainer.SAETrainer(config, sae, data)
    trainer.activation_scaler.scaling_factor = rows.scale()  # of all rows; its own estimate would use up batches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.fit()


def _seeded(seed: int, build: Any) -> Any:
    """`build()` with torch's global generator seeded, and put back afterwards; threads wait for each other."""
    with GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
