"""On real activations, what is exported computes what was trained, for every architecture; sae-probes takes it too."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TWO_LAYERS, RealBank
from dense_saes import decode, encode
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_probes.utils_data import get_yvals
from threadpoolctl import threadpool_limits
from torch import Tensor

from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes.architectures import TrainableSae
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.trained import Member, load_sae

D_SAE, K = 256, 16


class Trained:
    """An SAE after some training on real activations: as trained, as exported, and the rows it has not seen."""

    def __init__(self, architecture: str, real: RealBank) -> None:
        layers = "layers" in ARCHITECTURES[architecture].model_fields
        training, self.held_out = (b.at(TWO_LAYERS) if layers else b for b in (real.training, real.held_out))
        sizes: dict[str, Any] = {
            "d_sae": D_SAE,
            "k": K,
            "training_samples": 512 * 150,
            "batch_size": 512,
            "match_l0": "k",
        }
        given = Condition(
            architecture=architecture, **sizes, **({} if architecture != "jumprelu" else {"bandwidth": 0.2})
        )
        self.data = Data.of(training)
        self.sae: TrainableSae = Stack([Member(given, 0)], self.data, "cpu").train()[0]
        self.exported = self.sae.export(self.data.scale_in, self.data.scale_out, {"hook_name": training.hook_name})
        self.rows = torch.from_numpy(np.array(self.held_out.rows))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request: pytest.FixtureRequest, real_bank: RealBank) -> Trained:
    return Trained(request.param, real_bank)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5 of the largest entry, but for those that rounding moves across a threshold: none in 10,000."""
    assert found.shape == expected.shape
    off = (found - expected).abs() > 1e-5 * expected.abs().max()
    assert off.float().mean() <= 1e-4


@torch.no_grad()
def test_exported_latents_and_reconstructions_are_those_of_the_trained_sae(trained: Trained, tmp_path: Path) -> None:
    data, sae = trained.data, trained.sae
    latents = encode(sae, trained.rows * data.scale_in)
    found = trained.exported.encode(trained.rows)
    close(found, latents / data.scale_out)
    close(trained.exported.decode(found), decode(sae, latents) / data.scale_out)
    trained.exported.save_model(tmp_path)
    assert load_sae(tmp_path)  # registers what SAELens does not know
    loaded = SAE.load_from_disk(tmp_path, device="cpu")
    assert type(loaded) is type(trained.exported)
    assert torch.equal(loaded.encode(trained.rows), found)


def test_held_out_l0_is_within_a_tenth_of_k_and_something_is_explained(trained: Trained) -> None:
    found = measure(trained.exported, trained.held_out)
    assert found.l0 == pytest.approx(K, rel=0.1)
    assert found.explained_variance > 0.3


def test_a_routed_sae_without_its_router_is_another_sae(real_bank: RealBank) -> None:
    """The published mistake: the weights of a routed SAE, evaluated as those of a plain TopK SAE."""
    routed = Trained("routed_topk", real_bank)
    plain = TopKSAE(TopKSAEConfig(d_in=routed.rows.shape[1], d_sae=D_SAE, k=K))
    plain.load_state_dict({name: routed.exported.state_dict()[name] for name in plain.state_dict()})
    right, wrong = measure(routed.exported, routed.held_out), measure(plain, routed.held_out)
    assert abs(right.explained_variance - wrong.explained_variance) > 0.01
    with torch.no_grad():
        differ = (routed.exported.encode(routed.rows) != 0) != (plain.encode(routed.rows) != 0)
    assert differ.any(1).float().mean() > 0.5


def test_sae_probes_takes_the_exported_sae_as_it_is(trained: Trained, tmp_path: Path) -> None:
    name, hook = "95_toxic_is", trained.held_out.hook_name
    labels = torch.as_tensor(np.asarray(get_yvals(name))).float()
    prompts = torch.from_numpy(np.array(trained.held_out.rows[np.arange(len(labels)) % len(trained.rows)]))
    read = torch.nn.functional.normalize(trained.exported.W_enc.detach().T, dim=1)  # what is read shows in some latent
    prompts += prompts.norm(dim=1).mean() * labels[:, None] * read[:4].mean(0).repeat(prompts.shape[1] // read.shape[1])
    folder = tmp_path / "model_activations_made_up"
    folder.mkdir()
    torch.save(prompts, folder / f"{name}_{hook}.pt")
    with threadpool_limits(1):
        importlib.import_module("sae_probes.run_sae_evals").run_sae_evals(
            sae=trained.exported, model_name="made_up", hook_name=hook, reg_type="l1", setting="normal", ks=[1],
            datasets=[name], model_cache_path=tmp_path, results_path=tmp_path, device="cpu",
        )  # fmt: skip
    [path] = (tmp_path / "sae_probes_made_up" / "normal_setting").glob("*.json")
    assert 0.5 < json.loads(path.read_text(encoding="utf-8"))[0]["test_auc"] <= 1
