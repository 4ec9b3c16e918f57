"""The consistency objective: it pulls the decoder rows of each seed towards their partners in a reference.

`loss = NMSE + lambda * (1 - mean_i |cos(w_i, r_pi(i))|)`, with NMSE the squared error over the variance of the batch,
and `pi` the best one-to-one assignment of the decoder rows `w` to those of the reference `r`. Multiplied by the
variance, the first term is the loss that is trained without the objective. The gradient of the second has a closed form
that touches each row and its partner only, so it is added to the gradient of the decoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from husai_lib.saes.assignment import WarmAssignment, similarity


class Consistency:
    """The objective of the members of a stack."""

    def __init__(self, weights: Tensor, decoders: Tensor, interval: int, references: Sequence[Tensor] = ()) -> None:
        """`weights [members]`, `decoders [members, d_sae, d_out]`, and a reference `[d_sae, d_out]` for each member.

        Without references each member is aligned with the next one, as it is at the time of the matching.
        """
        self.weights, self.interval = weights, interval
        self.references = torch.stack([normalize(r, dim=1) for r in references]).to(decoders) if references else None
        self.matched = torch.zeros_like(decoders)
        """The partner of each decoder row, a unit row or zero."""
        self.assignments = [WarmAssignment(decoders.shape[1]) for _ in decoders]

    def match(self, decoders: Tensor) -> None:
        """Assign the decoder rows to those of the references again, starting from the last assignment."""
        own = normalize(decoders, dim=2)
        others = own.roll(-1, 0) if self.references is None else self.references
        for member, assignment in enumerate(self.assignments):
            partners = assignment.solve(similarity(own[member], others[member]).table)
            self.matched[member] = others[member][partners.to(own.device)]

    def add_gradient(self, decoders: Tensor, gradients: Tensor, target: Tensor) -> None:
        """Add that of the penalty to the `gradients` of the decoders; `target [members, n, d_out]` is the batch."""
        variance = vector_norm(target, dim=(1, 2)).square() / target.shape[1] - target.mean(1).square().sum(1)
        norms = decoders.norm(dim=2, keepdim=True).clamp_min(torch.finfo(decoders.dtype).tiny)
        cosines = (decoders * self.matched).sum(2, keepdim=True) / norms
        pull = (self.weights * variance / decoders.shape[1]).view(-1, 1, 1) * cosines.sign() / norms
        gradients.addcmul_(pull, self.matched, value=-1).addcmul_(pull * cosines / norms, decoders)

    def state(self) -> dict[str, Tensor]:
        """What changes from step to step, by name; writing into these tensors restores it."""
        tensors = {"matched": self.matched}
        for member, assignment in enumerate(self.assignments):
            tensors |= {f"prices/{member}": assignment.prices, f"partners/{member}": assignment.cols}
        return {f"consistency/{name}": tensor for name, tensor in tensors.items()}
