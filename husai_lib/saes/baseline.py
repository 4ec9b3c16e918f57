"""The baseline: SAEs trained by SAELens' own training class and trainer, on the same rows as the candidates."""

import functools
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import LoggingConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training import sae_trainer
from tqdm import tqdm

from husai_lib.activations.banks import Bank
from husai_lib.evidence.cache import cached
from husai_lib.params.conditions import BaselineParams, Condition, SaeParams
from husai_lib.saes.data import DEAD_AFTER, batches
from husai_lib.saes.trained import Member, TrainedSae
from husai_lib.tasks import Progress, device, run_tasks

sae_trainer.tqdm = functools.partial(tqdm, disable=True)  # its bar would stay in the report; steps report progress
GLOBAL_GENERATOR = threading.Lock()


def train_baseline(
    params: BaselineParams,
    sae_params: SaeParams,
    seeds: Sequence[int],
    rows: Bank,
    progress: Progress | None = None,
    *,
    name: str = "baseline",
) -> list[TrainedSae]:
    """One SAE a seed, trained by SAELens on the same rows and with the same width and k.

    Its defaults apply, but for the number of steps after which a latent counts as dead and is revived: it is the same
    share of all steps as the candidates have.
    """
    condition = Condition(
        **sae_params.model_dump(include={"d_sae", "k", "training_samples", "batch_size"}),
        learning_rate=params.learning_rate,
        name=name,
        architecture=params.architecture,
    )
    function = functools.partial(_trained_by_saelens, params=params, rows=rows)
    return run_tasks(function, [Member(condition, seed) for seed in seeds], "baselines trained", progress)


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
    _, config_class = get_sae_training_class(params.architecture)
    fields: dict[str, Any] = {"d_in": rows.shape[1], "d_sae": condition.d_sae, "device": to}
    fields |= {"l1_coefficient": params.l1_coefficient} if params.architecture == "standard" else {"k": condition.k}
    with GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):  # SAELens draws from torch's global generator
        torch.manual_seed(member.seed)
        sae = TrainingSAE.from_dict(config_class(normalize_activations="expected_average_only_in", **fields).to_dict())
    data = (rows.take(index) for index in batches(rows.shape[0], condition, member.seed))
    steps = condition.training_samples // condition.batch_size
    config = SAETrainerConfig(
        total_training_samples=steps * condition.batch_size,
        train_batch_size_samples=condition.batch_size,
        lr=condition.learning_rate,
        lr_end=condition.learning_rate,
        device=to,
        dead_feature_window=int(DEAD_AFTER * steps),  # as the candidates'; its 1,000 steps may be more than all steps
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = sae_trainer.SAETrainer(config, sae, data)
    trainer.activation_scaler.scaling_factor = rows.scale()  # of all rows; SAELens' own estimate would use up batches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.fit()
