"""On real activations, training is that of SAELens' own trainer step by step, wherever it has the architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from husai_lib.params.conditions import Condition
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.trained import Member

if TYPE_CHECKING:
    from conftest import RealBank

D_SAE, K, BATCH, STEPS = 256, 16, 128, 50
PLANNED = 70  # the step size falls over the last fifth of these, which is not reached
WARM_UP = 35
DEAD_AFTER = 7  # a tenth of the steps planned, checked every 8 steps: by then a latent has not fired 8 times
RATE = 1e-3

OURS: dict[str, dict[str, float]] = {
    "standard": {"l1_coefficient": 0.5, "l1_warm_up_fraction": WARM_UP / PLANNED},
    "gated": {"l1_coefficient": 0.5, "l1_warm_up_fraction": WARM_UP / PLANNED},
    "jumprelu": {"l0_coefficient": 0.5, "l0_warm_up_fraction": WARM_UP / PLANNED},
}
SHAPE: dict[str, Any] = {"d_in": 576, "d_sae": D_SAE}
L1 = {"l1_coefficient": 0.5, "l1_warm_up_steps": WARM_UP}
THEIRS: dict[str, Any] = {
    "topk": TopKTrainingSAEConfig(k=K, **SHAPE),
    "batchtopk": BatchTopKTrainingSAEConfig(k=K, **SHAPE),
    "standard": StandardTrainingSAEConfig(**L1, **SHAPE),
    "jumprelu": JumpReLUTrainingSAEConfig(
        l0_coefficient=0.5, l0_warm_up_steps=WARM_UP, jumprelu_bandwidth=0.05, jumprelu_init_threshold=0.01, **SHAPE
    ),
    "matryoshka_batchtopk": MatryoshkaBatchTopKTrainingSAEConfig(
        k=K, matryoshka_widths=[16, 32, 64, 128, 256], **SHAPE
    ),
    "gated": GatedTrainingSAEConfig(**L1, **SHAPE),
}


def saelens_trainer(architecture: str, start: dict[str, torch.Tensor], scale: float) -> SAETrainer[Any, Any]:
    """SAELens' trainer at the same weights; it scales activations by `scale`."""
    sae = TrainingSAE.from_dict(THEIRS[architecture].to_dict())
    for name, value in start.items():
        sae.get_parameter(name).data = value.clone()
    config = SAETrainerConfig(
        total_training_samples=PLANNED * BATCH,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_end=RATE,
        dead_feature_window=DEAD_AFTER,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter(()))
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def weights(stack: Stack) -> dict[str, torch.Tensor]:
    """Our weights by their names in SAELens."""
    names = {"b_enc": "b_gate"} if stack.condition.architecture == "gated" else {}
    found = {name: value.detach().clone() for name, value in stack.saes[0].named_parameters()}
    return {names.get(name, name): value.T.contiguous() if name == "W_enc" else value for name, value in found.items()}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("architecture", THEIRS)
def test_every_step_has_the_loss_of_saelens_trainer_and_leads_to_its_weights(
    architecture: str, sparse: bool, real_bank: RealBank
) -> None:
    condition = Condition(
        name=architecture, architecture=architecture, hyperparameters=OURS.get(architecture, {}),
        d_sae=D_SAE, k=K, training_samples=PLANNED * BATCH, batch_size=BATCH, learning_rate=RATE,
    )  # fmt: skip
    rows = real_bank.training
    stack = Stack([Member(condition, 0)], Data.of(rows), "cpu", sparse=sparse)
    stack.saes[0].b_enc.data[::8] = -30.0  # these latents are dead until they are revived
    start = weights(stack)
    trainer = saelens_trainer(architecture, start, rows.scale())
    losses, dead = [], []
    for x, target in stack.batches():
        theirs = trainer.step(x[0] / rows.scale())
        trainer.n_training_steps += 1
        losses.append((float(stack.step(x, target).total.detach()), float(theirs.loss.detach())))
        assert torch.equal(stack.unfired[0] > DEAD_AFTER, trainer.dead_neurons)
        dead.append(int(trainer.dead_neurons.sum()))
        if stack.done == STEPS:
            break
    ours, expected = np.array(losses).T
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert dead[DEAD_AFTER - 1] == 0 < dead[DEAD_AFTER]
    for name, value in weights(stack).items():
        other = trainer.sae.get_parameter(name).detach()
        assert (value - other).norm() < 1e-3 * (other - start[name]).norm()
