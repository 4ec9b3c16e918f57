"""What all architectures share: parameters and their start, latents, dead latents, export to SAELens.

A formula here is that of one member and works in two ways: on a CPU with sparse latents, one member at a time,
and dense under `torch.func.vmap` for a stack of members. So it never looks at a tensor's values to decide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures.latents import Latents, PreActivations, Selection
from husai_lib.saes.architectures.sparse import SCORED_TOGETHER, pre_activations_at


class TrainState(NamedTuple):
    """Where training stands, as a loss may need it."""

    step: int
    steps: int
    dead: Tensor | None
    """`[d_sae]` bool: latents that did not fire for a while; None where no latent of the stack is dead."""
    noise: Tensor | None = None
    """`[n, d_in]` standard normal, where the architecture asks for it by `wants_noise`."""

    def warm_up(self, fraction: Tensor) -> Tensor:
        """0 to 1, linearly over the first `fraction` of the steps (SAELens' coefficient schedule)."""
        return torch.nan_to_num(self.step / (fraction * self.steps).round(), nan=1.0).clamp(max=1.0)


class Loss(NamedTuple):
    """What a batch of rows gives."""

    total: Tensor
    """`[]`: what is minimised."""
    firing: Tensor
    """`[d_sae]`: in how many rows each latent fired."""
    buffers: dict[str, Tensor]
    """New values of buffers that follow the data, such as a running threshold."""


class TrainableSae(nn.Module, ABC):
    """An SAE in training. `W_enc` is kept as `[d_sae, d_in]` (SAELens: transposed), so that its sparse
    gradient is made of whole rows.

    Decoder rows start as random unit vectors, encoder rows as their copies (science: tied start). Numbers among the
    hyperparameters that are not whole are buffers, so the members of a stack may differ in them.
    """

    same_space = True
    """Whether input and target lie in the same space: then encoder rows start as the decoder's, and `b_dec` is
    subtracted from the input."""
    dead_after = 0.1
    """A latent that did not fire for this share of all steps counts as dead in training."""
    sparsity_coefficient: str | None = None
    """The hyperparameter that `match_l0` tunes; None where k says how many latents are active."""
    wants_noise = False
    """Whether the loss needs `TrainState.noise`."""

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.condition = condition
        self.d_in, self.d_out = d_in, d_out
        self.sparse = True
        """Whether latents are computed sparsely; training clears it for stacks and on a GPU."""
        rows = normalize(torch.randn(condition.d_sae, d_out, generator=generator), dim=1)
        self.W_dec = nn.Parameter(rows)
        own = None if self.same_space else normalize(torch.randn(condition.d_sae, d_in, generator=generator), dim=1)
        self.W_enc = nn.Parameter(rows.clone() if own is None else own)
        self.b_enc = nn.Parameter(torch.zeros(condition.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        for name, value in condition.hyperparameters.items():
            if isinstance(value, float):
                self.register_buffer(name, torch.tensor(value))

    def option(self, name: str) -> Any:
        """A hyperparameter that is this architecture's own: a tensor `[]` where it is not a whole number."""
        return self.get_buffer(name) if name in self._buffers else self.condition.hyperparameters[name]

    def forward(self, method: str, *arguments: Any) -> Any:
        """Call a method by its name; `torch.func.functional_call` knows no other than this one."""
        return getattr(self, method)(*arguments)

    @abstractmethod
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Loss of reconstructing `target [n, d_out]` from `x [n, d_in]`.

        The error is summed over dimensions and averaged over rows, as SAELens has it.
        """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents `[n, d_sae]` at inference, before scaling to unit decoder rows."""

    @abstractmethod
    def to_saelens(self, scale_in: float, scale_out: float) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """The SAELens inference class, the fields of its config beyond the widths, and its tensors beyond the usual.

        Training saw `scale_in * x` and `scale_out * target`; the class will see neither, and unit decoder rows.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction `[n, d_out]`."""
        return latents @ self.W_dec + self.b_dec

    def centred(self, x: Tensor) -> Tensor:
        """`x` minus the decoder bias, without a gradient to it: `pre_activations` gives it more cheaply."""
        return x - self.b_dec.detach() if self.same_space else x

    def pre_activations(self, x: Tensor, of: Tensor | slice = slice(None)) -> Tensor:
        """`(x - b_dec) @ W_enc.T + b_enc` of some latents, `[n, d_sae]`; a zero term has the gradient of b_dec."""
        W_enc, b_enc = self.W_enc[of], self.b_enc[of]
        zero = W_enc.detach() @ (self.b_dec - self.b_dec.detach()) if self.same_space else 0.0
        return self.centred(x) @ W_enc.T + (b_enc - zero)

    def selected(self, x: Tensor, selection: Selection, allowed: Tensor | None = None) -> PreActivations:
        """Pre-activations of the selected latents or, where dense is faster, of all and which are selected.

        `allowed [n, d_sae]` bool restricts the choice.
        """
        inputs, norms = self.centred(x), self.W_dec.detach().norm(dim=1)
        with torch.no_grad():
            active = selection.sparse(self._scores(inputs, norms, allowed)) if self.sparse else None
        if active is None:
            pre = self.pre_activations(x)
            scores = pre.detach() * norms
            if allowed is not None:
                scores = scores.masked_fill(~allowed, -torch.inf)
            return PreActivations(pre, None, len(norms), selection.dense(scores))
        bias = self.b_dec if self.same_space else self.b_enc.new_zeros(self.d_in)
        values = active.scores / norms[active.column]
        return PreActivations(
            pre_activations_at(active, values, inputs, bias, self.W_enc, self.b_enc), active, len(norms)
        )

    def latents(self, x: Tensor, selection: Selection, allowed: Tensor | None = None) -> Latents:
        """The selected latents, cut off at zero; `allowed [n, d_sae]` bool restricts the choice."""
        pre = self.selected(x, selection, allowed)
        return pre.latents(relu(pre.values) if pre.selected is None else relu(pre.values) * pre.selected)

    def _scores(self, inputs: Tensor, norms: Tensor, allowed: Tensor | None) -> Iterator[Tensor]:
        W_enc, b_enc = (self.W_enc * norms[:, None]).T, self.b_enc * norms
        for start in range(0, len(inputs), SCORED_TOGETHER):
            some = slice(start, start + SCORED_TOGETHER)
            scores = (inputs[some] @ W_enc).float().add_(b_enc)
            yield scores if allowed is None else scores.masked_fill_(~allowed[some], -torch.inf)

    def projected(self) -> dict[str, Tensor]:
        """Parameters that an optimiser step must not leave where it put them, with their new values."""
        if not self.condition.aligned:
            return {}
        short = 1 - (self.W_enc * self.W_dec).sum(1, keepdim=True)  # arXiv 2605.18629: encoder . decoder = 1
        return {"W_enc": self.W_enc + short * self.W_dec / self.W_dec.square().sum(1, keepdim=True)}

    def start_bias(self, mean: Tensor) -> Tensor:
        """What `b_dec` starts as, given the mean target `[d_out]`."""
        return mean

    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:  # noqa: ARG002 -- architectures look at it
        """Parameters of a start with about k active latents a row, for `match_l0`; the usual start if empty."""
        return {}

    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:  # noqa: ARG002 -- architectures look at it
        """Parameters moved towards k active latents, by a small share `error []` of log(L0 / k): a step's nudge."""
        return {}

    def threshold_of_k(self, x: Tensor) -> Tensor:
        """`[]`: what about k pre-activations a row of `x` exceed."""
        count = min(self.condition.k + 1, self.condition.d_sae)
        return self.pre_activations(x).detach().topk(count, dim=1).values.amin(1).mean()

    @torch.no_grad()
    def export(self, scale_in: float, scale_out: float, metadata: dict[str, Any]) -> Any:
        """The trained SAE as a SAELens SAE for unscaled activations, with unit decoder rows.

        All activation functions here are positively homogeneous, so scales and decoder norms fold into encoder,
        biases and thresholds.
        """
        sae_class, fields, tensors = self.to_saelens(scale_in, scale_out)
        norms = self.W_dec.norm(dim=1).clamp(min=1e-8)
        state = {
            "W_enc": (self.W_enc * norms[:, None] * (scale_in / scale_out)).T,
            "W_dec": self.W_dec / norms[:, None],
            "b_enc": self.b_enc * norms / scale_out,
            "b_dec": self.b_dec / scale_out,
            **tensors,
        }
        config_class = next(config for known, config in SAE_CLASS_REGISTRY.values() if known is sae_class)
        config = config_class(d_in=self.d_in, d_sae=self.condition.d_sae, metadata=SAEMetadata(**metadata), **fields)
        sae = sae_class(config)
        sae.load_state_dict({name: state[name].float().cpu().contiguous() for name in sae.state_dict()})
        return sae.eval()


def squared(error: Tensor) -> Tensor:
    """The squares of `error [n, d_out]`, summed over dimensions, averaged over rows."""
    flat = error.flatten()
    return flat.dot(flat) / len(error)


def revival_loss(sae: TrainableSae, x: Tensor, error: Tensor, dead: Tensor | None) -> Tensor:
    """`aux_loss_coefficient` times the squared error of the dead latents' attempt at the reconstruction error.

    The strongest `d_out / 2` dead latents of each row decode the detached error, which pulls them towards what is
    not explained; scaled down while few are dead (arXiv 2406.04093, A.2; as in SAELens).
    """
    if dead is None or not sae.condition.hyperparameters["aux_loss_coefficient"]:
        return error.new_zeros(())
    k_aux = sae.d_out // 2
    of = dead if sae.sparse else slice(None)  # on a CPU only the dead ones need be looked at
    pre, W_dec = sae.pre_activations(x, of), sae.W_dec[of]
    scores = (pre * W_dec.norm(dim=1)).detach().masked_fill(~dead[of], -torch.inf)
    strongest = scores.topk(min(k_aux, len(W_dec)), dim=1, sorted=False).indices
    chosen = torch.zeros_like(pre, dtype=torch.bool).scatter(1, strongest, True) & dead[of]
    scale: Tensor = sae.option("aux_loss_coefficient") * (dead.sum() / k_aux).clamp(max=1.0)
    return scale * squared((pre * chosen) @ W_dec - error.detach())
