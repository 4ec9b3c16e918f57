"""What all architectures share: parameters and their initial values, latents, dead latents, export to SAELens.

Every formula is that of one member and runs in two ways: on a CPU with sparse latents, one member at a time, and dense
under `torch.func.vmap` for a stack of members. So it never branches on a tensor's values.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from sae_lens.registry import get_sae_class, register_sae_class
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from husai_lib.activations.onednn import linear
from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures.latents import Active, LargestOfEachRow, Latents, Selection, SparsePreActivations

SCORED_TOGETHER = 256
"""Rows that are scored at once on a CPU: few enough to be selected from while they are in the cache."""


class TrainState(NamedTuple):
    """The state of training that a loss may depend on."""

    step: int
    steps: int
    dead: Tensor | None
    """`[d_sae]` bool: latents that have not fired for a while; None if no latent of the stack is dead."""
    noise: Tensor | None = None
    """`[n, d_in]` standard normal, if the architecture sets `wants_noise`."""

    def warm_up(self, fraction: Tensor) -> Tensor:
        """0 to 1, linearly over the first `fraction` of the steps (SAELens' coefficient schedule)."""
        return torch.nan_to_num(self.step / (fraction * self.steps).round(), nan=1.0).clamp(max=1.0)


class Loss(NamedTuple):
    """The results of one batch of rows."""

    total: Tensor
    """`[]`: the value to minimise."""
    firing: Tensor
    """`[d_sae]`: in how many rows each latent fired."""
    buffers: dict[str, Tensor]
    """New values of buffers that are estimated from the data, such as a running threshold."""


class TrainableSae(nn.Module):
    """An SAE in training. `W_enc` is `[d_sae, d_in]` (SAELens: transposed): its sparse gradient consists of whole rows.

    Decoder rows start as random unit vectors and encoder rows as copies of them. Hyperparameters that are not whole
    numbers are buffers, so that the members of a stack may differ in them.
    """

    exported_as: str
    """The name in SAELens' registry of the class that computes at inference what `loss` trains."""
    same_space = True
    """Whether input and target lie in the same space. If so, encoder rows start as copies of the decoder rows, and
    `b_dec` is subtracted from the input."""
    sparsity_coefficient: str | None = None
    """The hyperparameter that `match_l0` tunes; None if k determines how many latents are active."""
    wants_noise = False
    """Whether the loss needs `TrainState.noise`."""

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.condition = condition
        self.d_in, self.d_out = d_in, d_out
        self.sparse = True
        """Whether latents are computed sparsely; training sets it to False for stacks and on a GPU."""
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
        """A hyperparameter of this architecture: a tensor `[]` unless it is a whole number."""
        return self.get_buffer(name) if name in self._buffers else self.condition.hyperparameters[name]

    def forward(self, method: str, *arguments: Any) -> Any:
        """Call a method by its name: `torch.func.functional_call` calls only `forward`."""
        return getattr(self, method)(*arguments)

    def selection(self, x: Tensor) -> Selection:  # noqa: ARG002
        """The rule that selects the active latents of `x [n, d_in]`."""
        return LargestOfEachRow(self.condition.k)

    def penalty(self, x: Tensor, latents: Latents, state: TrainState) -> Tensor | float:  # noqa: ARG002
        """What the loss holds beside the squared error and the revival loss."""
        return 0.0

    def estimates(self, latents: Latents, state: TrainState) -> dict[str, Tensor]:  # noqa: ARG002
        """New values of buffers that are estimated from the data."""
        return {}

    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Loss of reconstructing `target [n, d_out]` from `x [n, d_in]`: summed over dimensions, averaged over rows."""
        latents = self.latents(x)
        error = latents.error(target + -self.b_dec, self.W_dec)  # `-` would negate the gradient of every row
        total = squared(error) + self.revival_loss(x, error, state.dead) + self.penalty(x, latents, state)
        return Loss(total, latents.firing(), self.estimates(latents, state))

    def revival_loss(self, x: Tensor, error: Tensor, dead: Tensor | None) -> Tensor:
        """`aux_loss_coefficient` times the squared error of the dead latents' reconstruction of the error.

        The strongest `d_out / 2` dead latents of each row reconstruct the detached error, which pulls them towards what
        is not explained yet. The loss is scaled down while few are dead (arXiv 2406.04093, A.2; as in SAELens).
        """
        if dead is None or not self.condition.hyperparameters["aux_loss_coefficient"]:
            return error.new_zeros(())
        k_aux = self.d_out // 2
        of = dead if self.sparse else slice(None)  # on a CPU only the dead ones are computed
        pre, W_dec = self.pre_activations(x, of), self.W_dec[of]
        scores = (pre * W_dec.norm(dim=1)).detach().masked_fill(~dead[of], -torch.inf)
        strongest = scores.topk(min(k_aux, len(W_dec)), dim=1, sorted=False).indices
        chosen = torch.zeros_like(pre, dtype=torch.bool).scatter(1, strongest, True) & dead[of]
        scale: Tensor = self.option("aux_loss_coefficient") * (dead.sum() / k_aux).clamp(max=1.0)
        return scale * squared((pre * chosen) @ W_dec - error.detach())

    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:  # noqa: ARG002
        """Tensors of the exported SAE that are not derived from `W_enc`, `W_dec`, `b_enc` and `b_dec` alone.

        Training saw `scale_in * x` and `scale_out * target`; the exported SAE sees neither, and has unit decoder rows.
        """
        return {}

    def centred(self, x: Tensor) -> Tensor:
        """`x` minus the decoder bias, without its gradient, which `pre_activations` computes more cheaply."""
        return x - self.b_dec.detach() if self.same_space else x

    def pre_activations(self, x: Tensor, of: Tensor | slice = slice(None)) -> Tensor:
        """`(x - b_dec) @ W_enc.T + b_enc` of some latents, `[n, d_sae]`; a zero term carries the gradient of b_dec."""
        W_enc, b_enc = self.W_enc[of], self.b_enc[of]
        zero = W_enc.detach() @ (self.b_dec - self.b_dec.detach()) if self.same_space else 0.0
        return self.centred(x) @ W_enc.T + (b_enc - zero)

    def selected(self, x: Tensor) -> Latents:
        """Pre-activations of the selected latents or, where dense is faster, of all latents."""
        selection = self.selection(x)
        inputs, norms = self.centred(x), self.W_dec.detach().norm(dim=1)
        with torch.no_grad():
            active = self.active(inputs, norms, selection) if self.sparse else None
        if active is None:
            pre = self.pre_activations(x)
            return Latents(pre, selected=selection.mask(pre.detach() * norms))
        parameters = (self.b_dec if self.same_space else None, self.W_enc, self.b_enc)
        pre = SparsePreActivations.apply(active.scores / norms[active.column], active, inputs, *parameters)  # type: ignore[no-untyped-call]
        return Latents(pre, active)

    def active(self, inputs: Tensor, norms: Tensor, selection: Selection, of: slice = slice(None)) -> Active | None:
        """The selected entries of some latents, each scored for unit decoder rows; None where dense is faster."""
        W_enc, b_enc = self.W_enc[of] * norms[of, None], self.b_enc[of] * norms[of]
        parts = torch.split(inputs, SCORED_TOGETHER)
        return selection.active(linear(part, W_enc).float().add_(b_enc) for part in parts)

    def latents(self, x: Tensor) -> Latents:
        """The selected latents, cut off at zero."""
        pre = self.selected(x)
        return pre.with_values(relu(pre.values) if pre.selected is None else relu(pre.values) * pre.selected)

    def projected(self) -> dict[str, Tensor]:
        """New values of the parameters that are constrained, after each optimiser step."""
        if not self.condition.aligned:
            return {}
        short = 1 - (self.W_enc * self.W_dec).sum(1, keepdim=True)  # arXiv 2605.18629: encoder . decoder = 1
        return {"W_enc": self.W_enc + short * self.W_dec / self.W_dec.square().sum(1, keepdim=True)}

    def start_bias(self, mean: Tensor) -> Tensor:
        """The initial `b_dec`, given the mean target `[d_out]`."""
        return mean

    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Initial parameters with about k active latents a row, for `match_l0`; empty if the usual ones stay."""
        return {}

    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Parameters moved towards k active latents by one step; `error []` is a small share of log(L0 / k)."""
        return {}

    def threshold_of_k(self, x: Tensor) -> Tensor:
        """`[]`: the threshold that about k pre-activations a row of `x` exceed."""
        count = min(self.condition.k + 1, self.condition.d_sae)
        return self.pre_activations(x).detach().topk(count, dim=1).values.amin(1).mean()

    @torch.no_grad()
    def export(self, scale_in: float, scale_out: float, metadata: dict[str, Any]) -> Any:
        """The trained SAE as a SAELens SAE for unscaled activations, with unit decoder rows.

        All activation functions here are positively homogeneous, so scales and decoder norms can be folded into the
        encoder, the biases and the thresholds. The config takes over hyperparameters of the same name.
        """
        norms = self.W_dec.norm(dim=1).clamp(min=1e-8)
        state = {
            "W_enc": (self.W_enc * norms[:, None] * (scale_in / scale_out)).T,
            "W_dec": self.W_dec / norms[:, None],
            "b_enc": self.b_enc * norms / scale_out,
            "b_dec": self.b_dec / scale_out,
            **self.exported_tensors(scale_in, scale_out),
        }
        sae_class, config_class = get_sae_class(self.exported_as)
        sizes = {"d_in": self.d_in, "d_out": self.d_out, "d_sae": self.condition.d_sae, "k": self.condition.k}
        own = {"apply_b_dec_to_input": self.same_space, "metadata": SAEMetadata(**metadata)}
        fields = sizes | self.condition.hyperparameters | own
        known = {field.name for field in dataclasses.fields(config_class)}
        sae = sae_class(config_class(**{name: value for name, value in fields.items() if name in known}))
        sae.load_state_dict({name: state[name].float().cpu().contiguous() for name in sae.state_dict()})
        return sae.eval()


def register(name: str, sae_class: type[Any], config: type[Any], **fields: type[Any]) -> None:
    """Register a class with SAELens as `name`; its config is `config` with additional fields, given as `name=type`."""
    own = {"architecture": classmethod(lambda _: name)}
    class_name = f"{sae_class.__name__}Config"
    config = dataclasses.make_dataclass(class_name, fields.items(), bases=(config,), namespace=own, kw_only=True)
    register_sae_class(name, sae_class, config)


def squared(error: Tensor) -> Tensor:
    """The squares of `error [n, d_out]`, summed over dimensions and averaged over rows."""
    flat = error.flatten()
    total = flat.dot(flat.detach())  # half of the gradient, in one pass; that of `flat.dot(flat)` takes three
    return (2 * total - total.detach()) / len(error)
