"""Routed, multi-layer and skip architectures compute what their formulas say, alone, in stacks and once exported."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_saes import decode, encode, largest
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from small_saes import bank, cache, trained
from stand_ins import smoke_data
from synthetic_banks import bank_of, dictionary, sparse_rows
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from husai_lib.activations.texts import ProbingSet
from husai_lib.errors import ParameterError
from husai_lib.measures.evaluation import measure
from husai_lib.measures.probing import ProbeTask, sae_scores
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.params.conditions import Condition
from husai_lib.params.cycle import CycleParams
from husai_lib.params.sections import check
from husai_lib.saes.architectures import TrainableSae, new_sae
from husai_lib.saes.architectures.base import TrainState
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.trained import Member, load_sae
from husai_lib.saes.training import train_bank

assert cache  # the fixture that every test of this module uses

D, D_SAE, K, N = 12, 48, 6, 64
"""`D` is the width of one layer."""
ROUTER: dict[str, Any] = {
    "route_balance": 3.0, "route_entropy": 2.0, "robust_noise_std": 0.7, "route_consistency": 5.0,
    "decoder_diversity": 4.0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "expert_topk": {"architecture": "routed_topk", **ROUTER},
    "global_mask": {"architecture": "routed_topk", "route_mode": "global_mask", "num_experts": 3, **ROUTER},
    "bare router": {"architecture": "routed_topk", "route_balance": 0.0, "route_entropy": 0.0},
    "route_sae": {"architecture": "route_sae"},
    "route_sae of 3 layers": {"architecture": "route_sae", "layers": 3},
    "layerwise": {"architecture": "layerwise", "l1_coefficient": 0.3},
    "layerwise of 3 layers": {"architecture": "layerwise", "layers": ["standard", "topk", "standard"]},
    "layerwise, all TopK": {"architecture": "layerwise", "layers": ["topk", "topk"]},
    "skip transcoder": {"architecture": "topk_transcoder", "skip": True},
}
every_case = pytest.mark.parametrize("case", CASES)


def condition(**changes: Any) -> Condition:
    sizes: dict[str, Any] = {"d_sae": D_SAE, "k": K, "training_samples": 8192, "batch_size": 256}
    return Condition(**sizes | changes)


def layers_of(of: Condition) -> int:
    layers = of.hyperparameters.get("layers", 1)
    return layers if isinstance(layers, int) else len(layers)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scrambled(case: str, **changes: Any) -> TrainableSae:
    """An SAE in the middle of training: no row is a unit vector and no bias is zero."""
    of = condition(**CASES[case] | changes)
    width = D * layers_of(of)
    sae = new_sae(of, width, width, torch.Generator().manual_seed(0))
    sae.b_dec.data = sae.start_bias(0.3 * normal(width, seed=5))
    for i, parameter in enumerate(sae.parameters()):
        parameter.data = parameter.data + 0.3 * normal(*parameter.shape, seed=10 + i)
    return sae


def batch(sae: TrainableSae, seed: int = 1) -> Tensor:
    return normal(N, D * layers_of(sae.condition), seed=seed)


def target_of(sae: TrainableSae, x: Tensor) -> Tensor:
    return x if sae.same_space else normal(N, D, seed=2)


def state(dead: int = 0) -> TrainState:
    """The state after the warm-up; of the latents in odd places, the first `dead` are dead."""
    places = torch.arange(D_SAE)
    return TrainState(10, 10, (places % 2 == 1) & (places < 2 * dead) if dead else None, normal(N, D, seed=3))


# --- loss and gradients against the formula, written densely -----------------------------------


def revival(sae: TrainableSae, pre: Tensor, rows: Tensor, error: Tensor, dead: Tensor | None) -> Tensor:
    """arXiv 2406.04093, A.2: the strongest d / 2 dead latents decode the error; `pre` is for unit decoder rows."""
    if dead is None or not dead.any():
        return torch.zeros(())
    count, room = int(dead.sum()), rows.shape[1] // 2
    strongest = pre.masked_fill(~dead, -torch.inf).topk(min(count, room), dim=1)
    attempt = torch.zeros_like(pre).scatter(1, strongest.indices, strongest.values) @ rows
    weight = sae.condition.hyperparameters["aux_loss_coefficient"] * min(1.0, count / room)
    return weight * (attempt - error.detach()).square().sum(1).mean()


def routed_loss(sae: TrainableSae, x: Tensor, target: Tensor, now: TrainState) -> Tensor:
    own, weights = sae.condition.hyperparameters, dict(sae.named_parameters())
    assert now.noise is not None
    experts, width = own["num_experts"], D_SAE // own["num_experts"]

    def probabilities(rows: Tensor) -> Tensor:
        logits = (rows - sae.b_dec.detach()) @ weights["W_router"].T + weights["b_router"]
        return torch.softmax(logits, dim=1)

    p, noised = probabilities(x), probabilities(x + own["robust_noise_std"] * now.noise)
    mask = torch.zeros(N, D_SAE, dtype=torch.bool)
    for row, expert in enumerate(p.argmax(1).tolist()):
        mask[row, expert * width : (expert + 1) * width] = True
    norms, unit = sae.W_dec.norm(dim=1), normalize(sae.W_dec, dim=1)
    pre = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc) * norms
    within = own["route_mode"] == "expert_topk"
    active = mask & largest(pre.masked_fill(~mask, -torch.inf) if within else pre, K)
    reconstruction = (pre.relu() * active) @ unit + sae.b_dec
    means = [block.mean(0) for block in unit.split(width)]
    cosines = [cosine_similarity(a, b, dim=0) ** 2 for a, b in combinations(means, 2)]
    return (
        (reconstruction - target).square().sum(1).mean()
        + own["route_balance"] * (p.mean(0) - 1 / experts).square().sum()
        - own["route_entropy"] * torch.distributions.Categorical(probs=p).entropy().mean()
        + own["route_consistency"] * (p - noised).square().sum(1).mean()
        + own["decoder_diversity"] * torch.stack(cosines).mean()
        + revival(sae, pre, unit, target - reconstruction, now.dead)
    )


def route_loss(sae: TrainableSae, x: Tensor, _: Tensor, now: TrainState) -> Tensor:
    weights = dict(sae.named_parameters())
    layers = torch.stack((x - sae.get_buffer("centre")).chunk(layers_of(sae.condition), dim=1))
    p = torch.softmax(layers.sum(0) @ weights["W_router"].T + weights["b_router"], dim=1)
    which = p.argmax(1)
    chosen = p[torch.arange(N), which][:, None]
    routed = chosen * layers[which, torch.arange(N)]
    norms, unit = sae.W_dec.norm(dim=1), normalize(sae.W_dec, dim=1)
    pre = ((routed - sae.b_dec) @ sae.W_enc.T + sae.b_enc) * norms
    reconstruction = (pre.relu() * largest(pre, K)) @ unit + sae.b_dec
    detached = ((routed.detach() - sae.b_dec) @ sae.W_enc.T + sae.b_enc) * norms
    error = ((reconstruction - routed) / chosen).square().sum(1).mean()
    return error + revival(sae, detached, unit, routed - reconstruction, now.dead)


def layerwise_loss(sae: TrainableSae, x: Tensor, target: Tensor, now: TrainState) -> Tensor:
    """With weights of the full width, zero outside the blocks."""
    kinds = sae.condition.hyperparameters["layers"]
    count, latents, total = len(kinds), D_SAE // len(kinds), torch.zeros(())
    W_enc, W_dec = (torch.block_diag(*weights.chunk(count)) for weights in (sae.W_enc, sae.W_dec))
    unit, pre = normalize(W_dec, dim=1), ((x - sae.b_dec) @ W_enc.T + sae.b_enc) * W_dec.norm(dim=1)
    blocks = []
    for kind, scores in zip(kinds, pre.chunk(count, dim=1), strict=True):
        blocks.append(scores.relu() * largest(scores, K // count) if kind == "topk" else scores.relu())
        if kind == "standard":
            total = total + sae.condition.hyperparameters["l1_coefficient"] * blocks[-1].sum(1).mean()
    active = torch.cat(blocks, dim=1)
    reconstruction = active @ unit + sae.b_dec
    for i in range(count if now.dead is not None else 0):
        assert now.dead is not None
        block, layer = slice(i * latents, (i + 1) * latents), slice(i * D, (i + 1) * D)
        error = (target - reconstruction)[:, layer]
        total = total + revival(sae, pre[:, block], unit[block, layer], error, now.dead[block])
    return total + (reconstruction - target).square().sum(1).mean()


def skip_loss(sae: TrainableSae, x: Tensor, target: Tensor, now: TrainState) -> Tensor:
    norms, unit = sae.W_dec.norm(dim=1), normalize(sae.W_dec, dim=1)
    pre = (x @ sae.W_enc.T + sae.b_enc) * norms
    output = (pre.relu() * largest(pre, K)) @ unit + sae.b_dec + x @ sae.get_parameter("W_skip").T
    return (output - target).square().sum(1).mean() + revival(sae, pre, unit, target - output, now.dead)


FORMULAS = {
    "routed_topk": routed_loss, "route_sae": route_loss, "layerwise": layerwise_loss, "topk_transcoder": skip_loss,
}  # fmt: skip


def gradients(sae: TrainableSae, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(sae.parameters()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(sae.named_parameters(), found, strict=True)
    }


def close(found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """Equal to within a share of the largest entry."""
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.detach().abs().max()))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dead", [0, 3, 20])
@every_case
def test_loss_and_gradients_equal_the_dense_formula(case: str, dead: int, sparse: bool) -> None:
    sae = scrambled(case)
    sae.sparse = sparse
    x, now = batch(sae), state(dead)
    target = target_of(sae, x)
    found = sae.loss(x, target, now)
    expected = FORMULAS[sae.condition.architecture](sae, x, target, now)
    close(found.total, expected)
    ours, theirs = gradients(sae, found.total), gradients(sae, expected)
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0 or (case == "bare router" and "router" in name)
        close(ours[name], gradient)


@every_case
def test_the_sparse_route_gives_what_the_dense_one_gives(case: str) -> None:
    sae = scrambled(case)
    x, now = batch(sae), state(9)
    found = {}
    for sparse in (True, False):
        sae.sparse = sparse
        loss = sae.loss(x, target_of(sae, x), now)
        found[sparse] = loss, gradients(sae, loss.total)
    assert torch.equal(found[True][0].firing, found[False][0].firing)
    assert torch.equal(found[True][0].firing, (encode(sae, x) > 0).sum(0))
    close(found[True][0].total, found[False][0].total, 1e-5)
    for name, gradient in found[False][1].items():
        close(found[True][1][name], gradient, 1e-5)


@every_case
def test_members_of_a_stack_train_as_they_would_alone(case: str) -> None:
    of = condition(**CASES[case])
    rows = bank_of(torch.cat([sparse_rows(dictionary(24, D, i), 512, 4, i) for i in range(layers_of(of))], dim=1))
    data = Data.of(rows, None if of.architecture != "topk_transcoder" else bank_of(normal(512, D, seed=4)))
    coefficient = {"aux_loss_coefficient": 0.5}
    members = [Member(of, 0), Member(condition(**CASES[case], learning_rate=3e-3), 1),
               Member(condition(**CASES[case] | coefficient), 2)]  # fmt: skip
    together = Stack(members, data, "cpu", sparse=False).train()
    for member, sae in zip(members, together, strict=True):
        [alone] = Stack([member], data, "cpu", sparse=False).train()
        for name, parameter in alone.named_parameters():
            close(sae.get_parameter(name).detach(), parameter.detach())


# --- from training to inference ----------------------------------------------------------------


@every_case
def test_the_exported_sae_does_with_raw_activations_what_training_did_with_scaled_ones(
    case: str, tmp_path: Path
) -> None:
    sae = scrambled(case)
    raw, scale_in, scale_out = 40 * batch(sae), 0.02, 0.02 if sae.same_space else 0.07
    exported = sae.export(scale_in, scale_out, metadata={"hook_name": "blocks.0.hook_resid_post"})
    with torch.no_grad():
        latents = encode(sae, raw * scale_in)
        output = decode(sae, latents)
        if not sae.same_space:
            output = output + raw * scale_in @ sae.get_parameter("W_skip").T
        close(exported.encode(raw), latents / scale_out, 1e-5)
        close(exported(raw), output / scale_out, 1e-5)
    torch.testing.assert_close(exported.W_dec.norm(dim=1), torch.ones(D_SAE))
    exported.save_model(tmp_path)
    for loaded in (SAE.load_from_disk(tmp_path, device="cpu"), load_sae(tmp_path)):
        assert type(loaded) is type(exported)
        assert loaded.cfg.to_dict() == exported.cfg.to_dict()
        assert loaded.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
        with torch.no_grad():
            assert torch.equal(loaded.encode(raw), exported.encode(raw))
            assert torch.equal(loaded(raw), exported(raw))


@pytest.mark.parametrize("case", ["expert_topk", "global_mask", "route_sae", "layerwise"])
def test_an_exported_sae_takes_any_leading_dimensions(case: str) -> None:
    exported, x = scrambled(case).export(1.0, 1.0, {}), batch(scrambled(case))
    with torch.no_grad():
        close(exported(x.reshape(4, N // 4, -1)).reshape(N, -1), exported(x), 1e-5)


@pytest.mark.parametrize("case", ["expert_topk", "route_sae", "layerwise"])
def test_sparse_probing_reads_the_exported_sae(case: str) -> None:
    sae, labels = scrambled(case), np.arange(310) % 2
    rows = np.random.default_rng(0).standard_normal((310, D * layers_of(sae.condition)))
    task = ProbeTask(
        ProbingSet("made_up", tuple(f"prompt {i}" for i in range(310)), labels, ("0", "1")),
        bank(rows + 2.0 * labels[:, None]),
    )
    [[score]] = sae_scores([trained(sae.export(1.0, 1.0, {}))], [task], ProbingParams())
    assert score.test_auc > 0.8


# --- routed TopK -------------------------------------------------------------------------------


@torch.no_grad()
def test_routing_losses_of_two_rows_derived_by_hand() -> None:
    # logits of +-(ln 3) / 2 are probabilities of 3/4 and 1/4
    weights = {"route_balance": 1.0, "route_entropy": 0.0}
    sae: Any = new_sae(condition(architecture="routed_topk", num_experts=2, **weights), 1, 1, torch.Generator())
    sae.W_router.data = torch.tensor([[0.5], [-0.5]]) * math.log(3)
    alike, apart = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
    assert float(sae.penalty(alike, None, state())) == pytest.approx(2 * 0.25**2)
    assert float(sae.penalty(apart, None, state())) == pytest.approx(0.0, abs=1e-7)
    weights = {"route_balance": 0.0, "route_entropy": 1.0}
    sae.condition = condition(architecture="routed_topk", num_experts=2, **weights)
    sae.route_entropy.fill_(1.0)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(sae.penalty(apart, None, state())) == pytest.approx(-entropy)


def test_one_expert_is_plain_topk() -> None:
    routed, plain = (
        new_sae(condition(architecture=name, **own), D, D, torch.Generator().manual_seed(0))
        for name, own in [("routed_topk", {"num_experts": 1}), ("topk", {})]
    )
    x = normal(N, D, seed=1)
    close(routed.loss(x, x, state(9)).total, plain.loss(x, x, state(9)).total, 1e-6)
    close(routed.export(1.0, 1.0, {}).encode(x), plain.export(1.0, 1.0, {}).encode(x), 1e-6)


def test_a_row_has_latents_of_one_block_and_below_k_of_them_where_the_mask_comes_last() -> None:
    for case, width in (("expert_topk", 12), ("global_mask", 16)):
        exported = scrambled(case).export(1.0, 1.0, {})
        exported.b_enc.data += 10.0  # all pre-activations positive, so only the choice makes zeros
        with torch.no_grad():
            active = exported.encode(normal(N, D, seed=1)) != 0
        assert (active.unflatten(1, (-1, width)).any(2).sum(1) <= 1).all()
        l0 = float(active.sum(1).float().mean())
        assert l0 == K if case == "expert_topk" else 0 < l0 < K


@pytest.mark.parametrize("mode", ["expert_topk", "global_mask"])
def test_the_published_mistake_of_dropping_the_router_gives_other_numbers(mode: str) -> None:
    rows = bank_of(sparse_rows(dictionary(24, D), 2048, active=3))
    of = condition(architecture="routed_topk", route_mode=mode, learning_rate=3e-3, training_samples=40_960)
    [found] = train_bank([Member(of, 0)], rows)
    plain = TopKSAE(TopKSAEConfig(d_in=D, d_sae=D_SAE, k=K))
    plain.load_state_dict({name: found.sae.state_dict()[name] for name in plain.state_dict()})
    routed, dropped = measure(found.sae, rows), measure(plain, rows)
    x = torch.from_numpy(np.array(rows.rows[:256]))
    with torch.no_grad():
        assert ((found.sae.encode(x) != 0) != (plain.encode(x) != 0)).any(1).float().mean() > 0.5
    assert abs(routed.explained_variance - dropped.explained_variance) > 0.02
    if mode == "global_mask":
        assert routed.l0 < 0.9 * dropped.l0


def test_balance_brings_a_collapsed_router_back() -> None:
    x, shares = normal(256, D, seed=1), {}
    for balance in (0.0, 1.0):
        of = condition(architecture="routed_topk", route_balance=balance, route_entropy=0.0)
        sae: Any = new_sae(of, D, D, torch.Generator().manual_seed(0))
        sae.b_router.data[0] = 6.0
        optimiser = torch.optim.Adam(sae.parameters(), lr=0.03)
        for _ in range(100):
            optimiser.zero_grad()
            sae.loss(x, x, TrainState(0, 100, None)).total.backward()
            optimiser.step()
        shares[balance] = float((sae.logits(x).argmax(1) == 0).float().mean())
    assert shares[0.0] > 0.99
    assert shares[1.0] < 0.5


# --- RouteSAE and layerwise --------------------------------------------------------------------


def two_layers(n: int = 2048) -> Any:
    return bank_of(torch.cat([sparse_rows(dictionary(16, D, i), n, 2, i) for i in (0, 1)], dim=1))


def test_what_is_routed_derived_by_hand() -> None:
    of = condition(architecture="route_sae")
    sae = new_sae(of, 2, 2, torch.Generator())
    sae.b_dec.data = sae.start_bias(torch.tensor([1.0, 10.0]))
    sae.get_parameter("W_router").data = torch.tensor([[0.5], [-0.5]]) * math.log(3)
    x = torch.tensor([[3.0, 9.0], [3.0, 7.0]])  # centred: (2, -1), sum 1: layer 0; (2, -3), sum -1: layer 1
    for scale in (1.0, 0.25):
        found = sae.export(scale, scale, {}).target_of(x / scale)
        close(found, torch.tensor([[0.75 * 2.0], [0.75 * -3.0]]) / scale, 1e-5)


def test_route_sae_learns_and_is_measured_on_what_it_routes() -> None:
    rows = two_layers()
    of = condition(architecture="route_sae", learning_rate=3e-3, training_samples=1024)
    early, late = (
        train_bank([Member(of.model_copy(update={"training_samples": n}), 0)], rows)[0].sae for n in (1024, 65_536)
    )
    found = measure(late, rows)
    with torch.no_grad():
        x = torch.from_numpy(np.array(rows.rows))
        y = late.target_of(x)
        expected = 1 - (y - late(x)).square().sum() / (y - y.mean(0)).square().sum()
    assert y.shape == (len(x), D)
    assert found.explained_variance == pytest.approx(float(expected), abs=1e-5)
    assert found.explained_variance > max(0.8, measure(early, rows).explained_variance + 0.2)
    assert found.l0 == pytest.approx(K, abs=0.5)


def test_layerwise_has_the_weights_of_one_sae_on_one_layer_and_none_outside_its_blocks() -> None:
    sae, one = scrambled("layerwise"), new_sae(condition(architecture="topk"), D, D, torch.Generator())
    for name in ("W_enc", "W_dec", "b_enc"):
        assert sae.get_parameter(name).numel() == one.get_parameter(name).numel()
    exported = sae.export(1.0, 1.0, {})
    for weights in (exported.W_enc.T, exported.W_dec):
        written = weights.abs().view(2, D_SAE // 2, 2, D).amin((1, 3)) > 0
        assert torch.equal(written, torch.eye(2) > 0)
        assert not weights.view(2, D_SAE // 2, 2, D)[[0, 1], :, [1, 0]].any()


def test_match_l0_tunes_the_relu_block_until_all_latents_together_are_k() -> None:
    of = condition(architecture="layerwise", match_l0="k", learning_rate=3e-3, training_samples=102_400)
    [found] = train_bank([Member(of, 0)], two_layers())
    result = measure(found.sae, two_layers())
    assert result.l0 == pytest.approx(K, rel=0.1)
    assert result.explained_variance > 0.6
    assert new_sae(condition(**CASES["layerwise, all TopK"]), 24, 24, torch.Generator()).sparsity_coefficient is None


# --- skip transcoder ---------------------------------------------------------------------------


def test_a_skip_connection_learns_the_linear_part_of_a_map() -> None:
    features, images = dictionary(24, D), dictionary(24, D, seed=7)
    x = sparse_rows(features, 2048, active=4)
    linear = normal(D, D, seed=9) / D**0.5
    target = bank_of((x @ features.T - 0.8).relu() @ images + 3 * x @ linear)
    rows, found = bank_of(x), {}
    for skip in (False, True):
        of = condition(architecture="topk_transcoder", skip=skip, learning_rate=3e-3, training_samples=65_536)
        [transcoder] = train_bank([Member(of, 0)], rows, target)
        assert hasattr(transcoder.sae, "W_skip") == skip
        found[skip] = 1 - measure(transcoder.sae, rows, target).explained_variance
    assert found[True] < 0.5 * found[False] < 0.1


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"architecture": "routed_topk", "num_experts": 5}, "d_sae = 48 .* shared equally by num_experts = 5; 45"),
        ({"architecture": "routed_topk", "num_experts": 64}, "d_sae = 48 .* by num_experts = 64; 64 can"),
        ({"architecture": "routed_topk", "num_experts": 12}, "k = 6 exceeds d_sae / num_experts = 4"),
        ({"architecture": "routed_topk", "num_experts": 0}, "num_experts = 0: .* greater than 0"),
        ({"architecture": "routed_topk", "route_mode": "expert"}, "route_mode = 'expert': .*'expert_topk'"),
        ({"architecture": "layerwise", "k": 7}, "k = 7 cannot be shared equally by the 2 layers; 6 can"),
        ({"architecture": "layerwise", "d_sae": 49}, "d_sae = 49 cannot .* the 2 layers; 48 can"),
        ({"architecture": "layerwise", "layers": ["topk"]}, "layers = .*at least 2 items"),
        ({"architecture": "layerwise", "layers": ["topk", "gated"]}, "layers.1 = 'gated': .*'topk' or 'standard'"),
        ({"architecture": "route_sae", "layers": ["topk", "topk"]}, "layers = .*valid integer"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(own: dict[str, Any], sentence: str) -> None:
    sizes: dict[str, Any] = {"d_sae": D_SAE, "k": K, "training_samples": 1024}
    with pytest.raises(ParameterError, match=sentence) as caught:
        check(Condition, sizes | own, "p.yaml")
    assert "\n" not in str(caught.value)


def test_a_mask_that_comes_last_may_have_blocks_below_k() -> None:
    condition(architecture="routed_topk", num_experts=12, route_mode="global_mask")


@pytest.mark.parametrize(
    ("architecture", "hook_name", "words"),
    [
        ("route_sae", "blocks.0.hook_resid_post", "condition 'route_sae' reads 2 layers but .* names 1"),
        ("layerwise", "blocks.1.hook_resid_post", "condition 'layerwise' reads 2 layers but .* names 1"),
        ("topk", "blocks.0.hook_resid_post+blocks.1.hook_resid_post", None),
        ("layerwise", "blocks.0.hook_resid_post+blocks.1.hook_resid_post", None),
        ("route_sae", "blocks.1.hook_resid_post+blocks.2.hook_resid_post", "beyond the model's 2 layers"),
    ],
)
def test_conditions_that_read_several_layers_need_as_many_hooks(
    architecture: str, hook_name: str, words: str | None
) -> None:
    data = smoke_data(conditions=[{"architecture": architecture}])
    data["activations"]["hook_name"] = hook_name
    if words is None:
        check(CycleParams, data, "p.yaml")
        return
    with pytest.raises(ParameterError, match=words):
        check(CycleParams, data, "p.yaml")
