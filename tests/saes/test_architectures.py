"""Every architecture computes the loss, gradients and exported SAE that its formula and SAELens' own class give."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_saes import encode
from pydantic import ValidationError
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.optim import CoefficientScheduler
from synthetic_banks import bank_of, dictionary, sparse_rows
from torch import Tensor
from torch.nn.functional import normalize

from husai_lib.evidence import cache
from husai_lib.evidence.cache import source_of
from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes import architectures, stack
from husai_lib.saes.architectures import TrainableSae, new_sae
from husai_lib.saes.architectures.base import TrainState
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.trained import Member, load_sae
from husai_lib.saes.training import train_bank

D_IN, D_OUT, D_SAE, K, N = 16, 12, 48, 6, 40
SAELENS = ["topk", "standard", "batchtopk", "jumprelu", "matryoshka_batchtopk", "gated"]
"""What SAELens has a training class for."""
SAES = [*SAELENS, "hierarchical_topk"]
NAMES = [*SAES, "topk_transcoder"]
WIDTHS = (3, 6, 12, 24, 48)
"""1/16, 1/8, 1/4, 1/2 and all of `D_SAE`."""


def condition(architecture: str, **changes: Any) -> Condition:
    """A condition of the test's size; keys of the architecture's own go to its hyperparameters."""
    own = ARCHITECTURES[architecture]().model_dump()
    hyperparameters = own | {key: changes.pop(key) for key in list(changes) if key in own}
    values: dict[str, Any] = {"d_sae": D_SAE, "k": K, "training_samples": 8192, "batch_size": 256}
    return Condition(name=architecture, architecture=architecture, hyperparameters=hyperparameters, **values | changes)


def scrambled(architecture: str, **changes: Any) -> TrainableSae:
    """An SAE in the middle of training: no row is a unit vector, no bias and no threshold is zero."""
    d_out = D_OUT if architecture == "topk_transcoder" else D_IN
    generator = torch.Generator().manual_seed(0)
    sae = new_sae(condition(architecture, **changes), D_IN, d_out, generator)
    for name, parameter in sae.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 + 0.05 * noise if name == "threshold" else parameter.data + 0.3 * noise
    return sae


def batch(d: int = D_IN, seed: int = 1) -> Tensor:
    return torch.randn(N, d, generator=torch.Generator().manual_seed(seed))


def target_of(sae: TrainableSae, x: Tensor) -> Tensor:
    return x if sae.same_space else batch(D_OUT, seed=2)


def state(dead: int = 0, step: int = 10) -> TrainState:
    """The state after the warm-up; the first `dead` latents are dead."""
    return TrainState(step=step, steps=10, dead=torch.arange(D_SAE) < dead if dead else None)


# --- loss and gradients against the formula, written densely -----------------------------------


def dense_latents(sae: TrainableSae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents for unit decoder rows `[n, d_sae]` and what the sparsity penalty counts, `[n, d_sae]`."""
    norms = sae.W_dec.norm(dim=1)
    pre = (x - sae.b_dec if sae.same_space else x) @ sae.W_enc.T + sae.b_enc
    scaled = (pre * norms).relu()
    match sae.condition.architecture:
        case "topk" | "topk_transcoder" | "hierarchical_topk":
            return scaled * (scaled >= scaled.topk(K, dim=1).values[:, -1:]), torch.zeros(())
        case "batchtopk" | "matryoshka_batchtopk":
            return scaled * (scaled >= scaled.flatten().topk(K * len(x)).values[-1]), torch.zeros(())
        case "standard":
            return scaled, scaled
        case "gated":
            # arXiv 2404.16014, equations 3 to 7: b_enc is the gate's bias
            r_mag, b_mag = sae.get_parameter("r_mag"), sae.get_parameter("b_mag")
            magnitude = (x - sae.b_dec) @ (sae.W_enc.T * r_mag.exp()) + b_mag
            return torch.where(pre > 0, magnitude * norms, 0.0).relu(), scaled
        case "jumprelu":
            # arXiv 2407.14435, equations 11 and 12: the threshold has a gradient only within half a bandwidth
            theta = sae.get_parameter("threshold")
            width, fixed = sae.option("bandwidth"), theta.detach()
            near = ((pre - fixed).abs() < width / 2) * (theta - fixed) / width
            gate = (pre > fixed).float()
            return (pre * gate - fixed * near) * norms, gate - near
        case _:
            raise AssertionError


def reconstructions(sae: TrainableSae, latents: Tensor, penalised: Tensor) -> list[Tensor]:
    """Everything that must be like the target, `[n, d_out]` each, of latents for unit rows: first that of all latents.

    Hierarchical TopK decodes k times here: the strongest latent of each row, the two strongest, and so on.
    """
    rows = normalize(sae.W_dec, dim=1)
    match sae.condition.architecture:
        case "matryoshka_batchtopk":
            parts = [latents[:, :width] @ rows[:width] for width in reversed(WIDTHS)]
        case "hierarchical_topk":
            least = latents.topk(K, dim=1).values.T.flip(0)
            parts = [(latents * (latents >= value[:, None])) @ rows for value in least]
        case "gated":
            parts = [latents @ rows, penalised @ rows]
        case _:
            parts = [latents @ rows]
    return [part + sae.b_dec for part in parts]


def dense_loss(sae: TrainableSae, x: Tensor, target: Tensor, dead: Tensor) -> Tensor:
    latents, penalised = dense_latents(sae, x)
    made = reconstructions(sae, latents, penalised)
    loss = torch.stack([(part - target).square().sum(1).mean() for part in made]).sum()
    own = sae.condition.hyperparameters
    if sae.condition.architecture == "hierarchical_topk":
        loss = loss / K
    if sae.sparsity_coefficient:
        loss = loss + own[sae.sparsity_coefficient] * penalised.sum(1).mean()
    if not dead.any():
        return loss
    # arXiv 2406.04093, A.2: the strongest d / 2 dead latents decode the error
    count, room = int(dead.sum()), target.shape[1] // 2
    pre = ((x - sae.b_dec if sae.same_space else x) @ sae.W_enc.T + sae.b_enc) * sae.W_dec.norm(dim=1)
    strongest = pre.masked_fill(~dead, -torch.inf).topk(min(count, room), dim=1)
    attempt = torch.zeros_like(pre).scatter(1, strongest.indices, strongest.values) @ normalize(sae.W_dec, dim=1)
    revival = (attempt - (target - made[0]).detach()).square().sum(1).mean()
    return loss + own["aux_loss_coefficient"] * min(1.0, count / room) * revival


def gradients(sae: TrainableSae, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(sae.parameters()), allow_unused=True)
    return {name: g for (name, _), g in zip(sae.named_parameters(), found, strict=True) if g is not None}


def close(found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """Equal to within a share of the largest entry."""
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.detach().abs().max()))


@pytest.mark.parametrize("dead", [0, 3, 30])
@pytest.mark.parametrize("architecture", NAMES)
def test_loss_and_gradients_equal_the_dense_formula(architecture: str, dead: int) -> None:
    sae, x = scrambled(architecture, aux_loss_coefficient=0.7), batch()
    target = target_of(sae, x)
    found = sae.loss(x, target, state(dead)).total
    expected = dense_loss(sae, x, target, torch.arange(D_SAE) < dead)
    close(found, expected)
    ours, theirs = gradients(sae, found), gradients(sae, expected)
    assert ours.keys() == theirs.keys() == {name for name, _ in sae.named_parameters()}
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0
        close(ours[name], gradient)


@pytest.mark.parametrize("dead", [None, 0, 3, 30])
@pytest.mark.parametrize("architecture", NAMES)
def test_sparse_and_dense_latents_give_the_same_loss_gradients_firing_and_buffers(
    architecture: str, dead: int | None
) -> None:
    sae, x = scrambled(architecture, aux_loss_coefficient=0.7), batch()
    now = TrainState(5, 10, None if dead is None else torch.arange(D_SAE) < dead)
    found = sae.loss(x, target_of(sae, x), now)
    sae.sparse = False
    expected = sae.loss(x, target_of(sae, x), now)
    close(found.total, expected.total)
    assert torch.equal(found.firing, expected.firing)
    assert found.buffers.keys() == expected.buffers.keys()
    for name, value in found.buffers.items():
        close(value, expected.buffers[name])
    theirs = gradients(sae, expected.total)
    for name, gradient in gradients(sae, found.total).items():
        close(gradient, theirs[name])


@pytest.mark.parametrize("architecture", NAMES)
def test_the_firing_of_a_latent_counts_the_rows_in_which_it_is_active(architecture: str) -> None:
    sae, x = scrambled(architecture), batch()
    sae.b_enc.data[:5] = -100.0  # these cannot
    firing = sae.loss(x, target_of(sae, x), state()).firing
    assert torch.equal(firing, (dense_latents(sae, x)[0] > 0).sum(0))
    assert not firing[:5].any()
    assert firing.any()


def test_a_batch_without_any_positive_pre_activation_has_a_loss() -> None:
    errors = {"matryoshka_batchtopk": len(WIDTHS), "gated": 2}  # the gate's own, and one of each level
    for architecture in NAMES:
        sae, x = scrambled(architecture), batch()
        sae.b_enc.data[:] = -100.0
        loss = sae.loss(x, target_of(sae, x), state())
        close(loss.total, errors.get(architecture, 1) * (target_of(sae, x) - sae.b_dec).square().sum(1).mean())
        assert not loss.firing.any()
        loss.total.backward()  # type: ignore[no-untyped-call]


# --- loss and gradients against SAELens --------------------------------------------------------


def of_saelens(sae: TrainableSae) -> Any:
    """SAELens' training class with the same weights."""
    shape = {"d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True}
    match sae.condition.architecture:
        case "topk":
            other: Any = TopKTrainingSAE(TopKTrainingSAEConfig(k=K, aux_loss_coefficient=0.7, **shape))
        case "batchtopk":
            other = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=K, aux_loss_coefficient=0.7, **shape))
        case "matryoshka_batchtopk":
            nested = {"matryoshka_widths": list(WIDTHS), "aux_loss_coefficient": 0.7}
            other = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(k=K, **nested, **shape))
        case "standard":
            other = StandardTrainingSAE(StandardTrainingSAEConfig(**shape))
        case "gated":
            other = GatedTrainingSAE(GatedTrainingSAEConfig(**shape))
        case _:
            other = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(jumprelu_bandwidth=0.05, **shape))
    for name, parameter in sae.named_parameters():
        value = parameter.detach().clone()
        other.get_parameter(name_in_saelens(sae, name)).data = value.T if name == "W_enc" else value
    return other


def name_in_saelens(sae: TrainableSae, name: str) -> str:
    return "b_gate" if sae.condition.architecture == "gated" and name == "b_enc" else name


@pytest.mark.parametrize("dead", [0, 3, 30])
@pytest.mark.parametrize("architecture", SAELENS)
def test_loss_and_gradients_equal_those_of_saelens(architecture: str, dead: int) -> None:
    own: dict[str, dict[str, float]] = {
        "standard": {"l1_coefficient": 0.5, "l1_warm_up_fraction": 1.0},
        "gated": {"l1_coefficient": 0.5, "l1_warm_up_fraction": 1.0},
        "jumprelu": {"l0_coefficient": 0.5, "l0_warm_up_fraction": 1.0},
    }
    sae, x = scrambled(architecture, **own.get(architecture, {"aux_loss_coefficient": 0.7})), batch()
    other = of_saelens(sae)
    now = TrainState(5, 10, torch.arange(D_SAE) < dead)  # half of the warm-up, so half of 0.5
    step = TrainStepInput(
        x, {"l1": 0.25, "l0": 0.25}, torch.arange(D_SAE) < dead, n_training_steps=5, is_logging_step=False
    )
    output = other.training_forward_pass(step)
    loss = sae.loss(x, x, now)
    close(loss.total, output.loss)
    assert torch.equal(loss.firing, (output.feature_acts > 0).sum(0))
    output.loss.backward()
    for name, gradient in gradients(sae, loss.total).items():
        theirs = other.get_parameter(name_in_saelens(sae, name)).grad
        close(gradient, theirs.T if name == "W_enc" else theirs)


@pytest.mark.parametrize(("fraction", "steps"), [(0.1, 100), (1.0, 7), (0.0, 10), (0.01, 10)])
def test_the_coefficient_warms_up_as_in_saelens(fraction: float, steps: int) -> None:
    scheduler = CoefficientScheduler(warm_up_steps=int(fraction * steps), final_value=1.0)
    for step in range(steps):
        found = TrainState(step, steps, None).warm_up(torch.tensor(fraction))
        assert float(found) == pytest.approx(scheduler.current_value)
        scheduler.step()


# --- many members as one computation -----------------------------------------------------------

COEFFICIENTS = {"standard": "l1_coefficient", "gated": "l1_coefficient", "jumprelu": "l0_coefficient"}


@pytest.mark.parametrize("architecture", NAMES)
def test_members_of_a_stack_are_trained_as_each_of_them_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dead_latents(condition: Condition, *sizes: Any) -> TrainableSae:
        sae = new_sae(condition, *sizes)
        sae.b_enc.data[: int(4 * condition.hyperparameters["aux_loss_coefficient"])] = -9.0  # other ones of each member
        return sae

    monkeypatch.setattr(stack, "new_sae", with_dead_latents)
    rows = bank_of(sparse_rows(dictionary(24, D_IN), 1024, active=4))
    target = bank_of(sparse_rows(dictionary(24, D_OUT), 1024, active=4)) if "transcoder" in architecture else None
    data, own = Data.of(rows, target), COEFFICIENTS.get(architecture)
    members = [
        Member(condition(architecture, training_samples=12 * 64, batch_size=64, learning_rate=rate,
                         aux_loss_coefficient=float(seed), **({own: value} if own else {})), seed)
        for seed, value, rate in ((1, 0.5, 1e-3), (2, 1.0, 3e-3), (3, 2.0, 1e-3))
    ]  # fmt: skip
    together = Stack(members, data, "cpu", sparse=False)
    for member, found in zip(members, together.train(), strict=True):
        alone = Stack([member], data, "cpu")
        expected = alone.train()[0].state_dict()
        assert alone.some_dead
        for name, value in found.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


# --- from training to inference ----------------------------------------------------------------


@pytest.mark.parametrize("architecture", NAMES)
def test_the_exported_sae_reconstructs_raw_activations_as_training_did_scaled_ones(
    architecture: str, tmp_path: Path
) -> None:
    sae, raw = scrambled(architecture), 40 * batch()
    scale_in, scale_out = (0.02, 0.07) if architecture == "topk_transcoder" else (0.02, 0.02)
    norms = sae.W_dec.detach().norm(dim=1)
    with torch.no_grad():
        latents = dense_latents(sae, raw * scale_in)[0]
        if "batchtopk" in architecture:  # at inference there is no batch: a threshold takes its place
            sae.get_buffer("threshold").fill_(0.9)
            scaled = (((raw * scale_in - sae.b_dec) @ sae.W_enc.T + sae.b_enc) * norms).relu()
            latents = scaled * (scaled > 0.9)
        expected = (latents @ normalize(sae.W_dec, dim=1) + sae.b_dec) / scale_out
    exported = sae.export(scale_in, scale_out, metadata={"hook_name": "blocks.0.hook_resid_post"})
    with torch.no_grad():
        close(exported.encode(raw), latents / scale_out, 1e-5)
        close(exported.decode(exported.encode(raw)), expected, 1e-5)
    torch.testing.assert_close(exported.W_dec.norm(dim=1), torch.ones(D_SAE))

    exported.save_model(tmp_path)
    for loaded in (SAE.load_from_disk(tmp_path, device="cpu"), load_sae(tmp_path)):
        assert type(loaded) is type(exported)
        assert loaded.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
        with torch.no_grad():
            assert torch.equal(loaded.encode(raw), exported.encode(raw))
            assert torch.equal(loaded.decode(loaded.encode(raw)), exported.decode(exported.encode(raw)))


@pytest.mark.parametrize("architecture", ["topk", "hierarchical_topk", "topk_transcoder"])
def test_at_most_k_latents_are_active_at_inference(architecture: str) -> None:
    exported = scrambled(architecture).export(1.0, 1.0, metadata={})
    with torch.no_grad():
        assert (exported.encode(batch()) != 0).sum(1).max() <= K


def test_a_gated_sae_whose_l0_is_matched_starts_near_k() -> None:
    sae, x = new_sae(condition("gated"), D_IN, D_IN, torch.Generator().manual_seed(0)), batch()
    assert (encode(sae, x) > 0).sum(1).float().mean() > 3 * K
    sae.load_state_dict(sae.start_at_l0(x), strict=False)
    assert float((encode(sae, x) > 0).sum(1).float().mean()) == pytest.approx(K, rel=0.2)


def test_a_transcoder_is_exported_without_subtracting_its_bias_though_both_spaces_are_equally_wide() -> None:
    # MLP input and output have the model's width, both, and are other spaces all the same
    sae = new_sae(condition("topk_transcoder"), D_IN, D_IN, torch.Generator().manual_seed(0))
    sae.b_dec.data += 1.0
    assert not torch.equal(sae.W_enc, sae.W_dec)
    x, exported = batch(), sae.export(1.0, 1.0, metadata={})
    with torch.no_grad():
        error = (exported.decode(exported.encode(x)) - batch(seed=2)).square().sum(1).mean()
    close(error, sae.loss(x, batch(seed=2), state()).total.detach(), 1e-5)


@pytest.mark.parametrize("steps", [16, 150])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_the_estimated_threshold_gives_about_k_latents_a_row_after_a_short_training(
    architecture: str, steps: int
) -> None:
    rows = bank_of(sparse_rows(dictionary(24, D_IN), 4096, active=4))
    short = condition(architecture, learning_rate=3e-3, training_samples=steps * 256)
    [trained] = train_bank([Member(short, 0)], rows)
    assert measure(trained.sae, rows).l0 == pytest.approx(K, rel=0.15)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_few_latents_of_a_small_batch_can_be_chosen(architecture: str) -> None:
    rows = bank_of(sparse_rows(dictionary(24, D_IN), 256, active=4))
    [trained] = train_bank([Member(condition(architecture, k=1, batch_size=8, training_samples=64), 0)], rows)
    assert measure(trained.sae, rows).l0 < 4


def test_a_hierarchical_sae_cut_to_a_few_latents_explains_more_than_a_topk_sae_cut_the_same_way() -> None:
    features = dictionary(24, D_IN)
    rows, held_out = (sparse_rows(features, n, active=4, seed=n) for n in (4096, 1000))
    found: dict[str, list[float]] = {}
    for name in ("topk", "hierarchical_topk"):
        given = condition(name, learning_rate=3e-3, training_samples=300 * 256)
        [trained] = train_bank([Member(given, 0)], bank_of(rows))
        assert type(trained.sae) is TopKSAE
        with torch.no_grad():
            latents = trained.sae.encode(held_out)
            least = latents.topk(K, dim=1).values.T
            errors = [trained.sae.decode(latents * (latents >= value[:, None])) - held_out for value in least]
        found[name] = [float(error.square().sum(1).mean()) for error in errors]
    for j in (1, 2, 3):
        assert found["hierarchical_topk"][j - 1] < found["topk"][j - 1]
    assert found["hierarchical_topk"] == sorted(found["hierarchical_topk"], reverse=True)


# --- the registry ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", NAMES)
def test_every_architecture_starts_with_unit_decoder_rows_of_its_seed(architecture: str) -> None:
    made = [new_sae(condition(architecture), D_IN, D_OUT if "transcoder" in architecture else D_IN,
                    torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]  # fmt: skip
    assert isinstance(made[0], TrainableSae)
    torch.testing.assert_close(made[0].W_dec.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(made[0].W_enc.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(made[0].W_enc, made[0].W_dec) == made[0].same_space
    assert torch.equal(made[0].W_dec, made[1].W_dec)
    assert not torch.equal(made[0].W_dec, made[2].W_dec)


def test_a_matryoshka_ends_in_all_latents_and_its_levels_are_whole_and_distinct() -> None:
    small = new_sae(condition("matryoshka_batchtopk", d_sae=6), D_IN, D_IN, torch.Generator().manual_seed(0))
    assert small.widths() == [1, 2, 3, 6]  # 6/16 and 6/8 are both nearest to no more than one latent
    for wrong in ([0.5], [0.5, 0.25, 1.0], [0.5, 0.5, 1.0], []):
        with pytest.raises(ValidationError, match="widths must ascend to 1"):
            condition("matryoshka_batchtopk", widths=wrong)


TOY = """
from sae_lens import StandardSAE, StandardSAEConfig

from husai_lib.saes.architectures import standard
from husai_lib.saes.architectures.base import register


class Toy(StandardSAE):
    pass


register("toy", Toy, StandardSAEConfig)


class Sae(standard.Sae):
    exported_as = "toy"
"""


def test_an_architecture_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "husai_lib.saes.architectures.toy"
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    monkeypatch.setattr(cache, "source_of", lambda module: TOY if module == name else source_of(module))
    monkeypatch.setitem(ARCHITECTURES, "toy", ARCHITECTURES["standard"])
    importlib.invalidate_caches()
    try:
        rows = bank_of(sparse_rows(dictionary(24, D_IN), 1024, active=4))
        [trained] = train_bank([Member(condition("toy", training_samples=512), 0)], rows)
        # another process finds the class by the name in cfg.json, though nothing has imported its module yet
        del sys.modules[name], SAE_CLASS_REGISTRY["toy"]
        assert type(trained.sae).__name__ == "Toy"
    finally:
        sys.modules.pop(name, None)
        SAE_CLASS_REGISTRY.pop("toy", None)
