"""What an SAE in training computes at inference, written densely and without the library's own latents."""

from __future__ import annotations

import torch
from torch import Tensor

from husai_lib.saes.architectures import TrainableSae


def largest(scores: Tensor, k: int) -> Tensor:
    """`[n, d_sae]` bool: the k largest scores of each row."""
    return torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0) > 0


def encode(sae: TrainableSae, x: Tensor) -> Tensor:
    """Latents `[n, d_sae]`, in units of unit decoder rows, of scaled rows `x [n, d_in]`."""
    own, k, weights = sae.condition.hyperparameters, sae.condition.k, dict(sae.named_parameters())
    x = read(sae, x)
    kinds = own["layers"] if sae.condition.architecture == "layerwise" else [""]
    layers = (x - sae.b_dec if sae.same_space else x).chunk(len(kinds), 1)
    pre = torch.cat([layer @ W.T for layer, W in zip(layers, sae.W_enc.chunk(len(kinds)), strict=True)], 1)
    norms = sae.W_dec.norm(dim=1)
    gate, pre = pre, (pre + sae.b_enc) * norms
    match sae.condition.architecture:
        case "standard":
            active = pre > 0
        case "batchtopk" | "matryoshka_batchtopk":
            active = pre > sae.get_buffer("threshold")
        case "jumprelu":
            active = pre > weights["threshold"] * norms
        case "gated":
            active, pre = pre > 0, (gate * weights["r_mag"].exp() + weights["b_mag"]) * norms
        case "routed_topk":
            expert = ((x - sae.b_dec) @ weights["W_router"].T + weights["b_router"]).argmax(1, keepdim=True)
            mask = torch.arange(pre.shape[1]) // (pre.shape[1] // own["num_experts"]) == expert
            within = own["route_mode"] == "expert_topk"
            active = mask & largest(pre.masked_fill(~mask, -torch.inf) if within else pre, k)
        case "layerwise":
            parts = zip(kinds, pre.chunk(len(kinds), 1), strict=True)
            active = torch.cat([largest(p, k // len(kinds)) if kind == "topk" else p > 0 for kind, p in parts], 1)
        case _:
            active = largest(pre, k)
    return pre.relu() * active


def read(sae: TrainableSae, x: Tensor) -> Tensor:
    """What the encoder reads of rows `x`: for RouteSAE the routed activation `[n, d]`, else all."""
    if sae.condition.architecture != "route_sae":
        return x
    weights, layers = dict(sae.named_parameters()), sae.condition.hyperparameters["layers"]
    parts = torch.stack((x - sae.get_buffer("centre")).chunk(layers, dim=1))
    p = torch.softmax(parts.sum(0) @ weights["W_router"].T + weights["b_router"], dim=1)
    which, every = p.argmax(1), torch.arange(len(x))
    return p[every, which][:, None] * parts[which, every]


def decode(sae: TrainableSae, latents: Tensor) -> Tensor:
    """Reconstruction `[n, d_out]` from latents in units of unit decoder rows."""
    rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
    if sae.condition.architecture == "layerwise":
        rows = torch.block_diag(*rows.chunk(len(sae.condition.hyperparameters["layers"])))
    return latents @ rows + sae.b_dec
