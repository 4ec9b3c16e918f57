"""Training: one loop for every architecture, a bank of members at a time, and SAELens' own for the baseline."""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training import sae_trainer
from tqdm import tqdm

from husai_lib.activations import Bank
from husai_lib.architectures import TrainableSae, new_sae
from husai_lib.architectures.base import TrainState
from husai_lib.cache import Entry, cached, code_hash, open_entry
from husai_lib.errors import DataError, IntegrityError
from husai_lib.params import ARCHITECTURES, BaselineParams, Condition, SaeParams
from husai_lib.randomness import numpy_generator, torch_generator
from husai_lib.tasks import Progress, device, run_tasks

sae_trainer.tqdm = functools.partial(tqdm, disable=True)  # its bar would stay in the report; steps tell their progress
GLOBAL_GENERATOR = threading.Lock()
GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm, as SAELens' trainer does."""


@dataclass(frozen=True)
class Member:
    """One SAE to train: a condition at a seed."""

    condition: Condition
    seed: int


@dataclass(frozen=True)
class TrainedSae:
    """A trained SAE in the cache, as a SAELens folder."""

    member: Member
    entry: Entry

    @property
    def weights_sha256(self) -> str:
        """Hash of `sae_weights.safetensors`."""
        return self.entry.files["sae_weights.safetensors"]

    @functools.cached_property
    def sae(self) -> Any:
        """The SAELens SAE, loaded by `SAE.load_from_disk`, with its own encoder."""
        return load_sae(self.entry.path)


def members(conditions: Sequence[Condition], seeds: Sequence[int]) -> list[Member]:
    """Every condition at every seed."""
    return [Member(condition, seed) for condition in conditions for seed in seeds]


def train_bank(
    bank_members: Sequence[Member], rows: Bank, target: Bank | None = None, progress: Progress | None = None
) -> list[TrainedSae]:
    """Train the members on the same rows, each with initial weights and data order of its own seed.

    With `target` the SAEs map `rows` to `target` (transcoders). A member that is in the cache is not
    trained again. A member ends with the same weights alone or in a bank, whatever the number of jobs.
    Raises DataError if training diverges.
    """
    scales = rows.scale(), (target or rows).scale()
    function = functools.partial(_trained, rows=rows, target=target, scales=scales)
    return run_tasks(function, bank_members, "members trained", progress)


def _trained(member: Member, rows: Bank, target: Bank | None, scales: tuple[float, float]) -> TrainedSae:
    architecture = member.condition.architecture
    inputs = {
        "condition": member.condition.model_dump(exclude={"name"}),
        "seed": member.seed,
        "rows": [rows.hook_name, rows.sha256],
        "target": target and [target.hook_name, target.sha256],
        "architecture_code": code_hash(f"husai_lib.architectures.{architecture}"),
        "device": device(),
    }

    def make(folder: Path) -> None:
        sae = _train(member, rows, target, scales)
        hook_out = target.hook_name if target else None
        metadata = {"hook_name": rows.hook_name, "hook_name_out": hook_out, "seed": member.seed}
        sae.export(*scales, metadata=metadata).save_model(folder)

    return TrainedSae(member, cached("saes", __name__, inputs, make))


def _train(member: Member, rows: Bank, target: Bank | None, scales: tuple[float, float]) -> TrainableSae:
    """The training loop: Adam, step size decayed linearly to zero over the last fifth of the steps."""
    condition, to = member.condition, device()
    outputs = target or rows
    generator = torch_generator(member.seed, f"initial weights {condition.architecture}")
    sae = new_sae(condition, rows.rows.shape[1], outputs.rows.shape[1], generator)
    sae.b_dec.data = outputs.mean().float() * scales[1]
    sae = sae.to(to)
    optimiser = torch.optim.Adam(sae.parameters(), lr=condition.learning_rate, fused=True)
    steps = condition.training_samples // condition.batch_size
    unfired = torch.zeros(condition.d_sae, device=to)
    for step, index in enumerate(batches(len(rows.rows), condition, member.seed)):
        for group in optimiser.param_groups:
            group["lr"] = condition.learning_rate * min(1.0, (steps - step) / max(1, steps // 5))
        x = torch.from_numpy(rows.rows[index]).to(to) * scales[0]
        wanted = torch.from_numpy(target.rows[index]).to(to) * scales[1] if target else x
        loss = sae.loss(x, wanted, TrainState(step, steps, unfired > sae.dead_after * steps))
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(sae.parameters(), GRADIENT_NORM)
        optimiser.step()
        sae.after_step()
        unfired = torch.where(loss.fired, 0.0, unfired + 1)
    if not all(torch.isfinite(p.norm()) for p in sae.parameters()):
        raise DataError(f"training of {condition.name} at seed {member.seed} diverged; lower its learning_rate")
    return sae


def batches(n_rows: int, condition: SaeParams, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each step: epoch after epoch, each in a new random order of this seed's own."""
    generator = numpy_generator(seed, "data order")
    pending = np.empty(0, dtype=np.int64)
    for _ in range(condition.training_samples // condition.batch_size):
        while len(pending) < condition.batch_size:
            pending = np.concatenate([pending, generator.permutation(n_rows)])
        yield pending[: condition.batch_size]
        pending = pending[condition.batch_size :]


def train_baseline(
    params: BaselineParams, sae_params: SaeParams, seeds: Sequence[int], rows: Bank, progress: Progress | None = None
) -> list[TrainedSae]:
    """SAELens' own training class and `SAETrainer`, with its defaults, on the same rows, width, k and seeds."""
    condition = Condition(
        **sae_params.model_dump(exclude={"learning_rate"}),
        learning_rate=params.learning_rate,
        name="baseline",
        architecture=params.architecture,
    )
    function = functools.partial(_trained_by_saelens, params=params, rows=rows)
    return run_tasks(function, members([condition], seeds), "baselines trained", progress)


def _trained_by_saelens(member: Member, params: BaselineParams, rows: Bank) -> TrainedSae:
    inputs = {
        "trainer": "sae_lens",
        "params": params.model_dump(),
        "seed": member.seed,
        "rows": rows.sha256,
        "condition": member.condition.model_dump(),
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
    data = (torch.from_numpy(rows.rows[index]) for index in batches(len(rows.rows), condition, member.seed))
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


def load_sae(folder: Path) -> Any:
    """The SAE of a SAELens folder, of whatever class its `cfg.json` names."""
    for architecture in ARCHITECTURES:  # an architecture may register a class of its own with SAELens
        importlib.import_module(f"husai_lib.architectures.{architecture}")
    return SAE.load_from_disk(folder, device="cpu").eval()


def open_trained(member: Member, key: str, weights_sha256: str) -> TrainedSae:
    """The trained SAE of a record; IntegrityError if its weights are missing or other ones."""
    trained = TrainedSae(member, open_entry("saes", key))
    if trained.weights_sha256 != weights_sha256:
        who = f"{member.condition.name} at seed {member.seed}"
        raise IntegrityError(f"the weights of {who} are not those of its record; run the cycle again")
    return trained


def _seeded(seed: int, build: Any) -> Any:
    """`build()` with torch's global generator seeded, and put back afterwards; threads wait for each other."""
    with GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
