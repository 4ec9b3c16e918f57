"""Hierarchical TopK: every number of latents up to k reconstructs, the strongest first (arXiv 2505.24473).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents).
"""

import torch
from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures import topk
from husai_lib.saes.architectures.base import Loss, TrainState
from husai_lib.saes.architectures.latents import Latents

ROWS_TOGETHER = 512
"""Rows whose prefixes are computed at once on a CPU: few enough for their errors to stay in the cache."""


class Sae(topk.Sae):
    """A TopK SAE, also at inference, whose latents may be cut to the strongest j of each row for any j up to k."""

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """The mean squared error over the prefixes j = 1 to k, plus the revival loss, which uses all k latents.

        With `e_j` the error of prefix j, latent `f_i` with decoder row `w_i` has the gradient `-2 w_i . s_i` and
        gives its row `-2 f_i s_i`, where `s_i` is the sum of `e_j` over `j >= i`; the bias gets `-2 s_1`. This takes
        the memory of one prefix, while autograd would store all k errors of every row.
        """
        latents = self.latents(x)
        values, columns = self._strongest_first(latents)
        with torch.no_grad():
            error = latents.error(target - self.b_dec, self.W_dec)
            together = ROWS_TOGETHER if self.sparse else len(x)
            squares, to_values, to_rows, to_bias = _over_prefixes(values, columns, self.W_dec, error, together)
        mean = 1 / (len(x) * self.condition.k)
        moved = (values * to_values).sum() + (self.W_dec * to_rows).sum() + (self.b_dec * to_bias).sum()
        total = mean * (squares - 2 * (moved - moved.detach()))  # the value of `squares` with the gradients above
        return Loss(total + self.revival_loss(x, error, state.dead), latents.firing(), {})

    def _strongest_first(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Values and columns `[k, n]` of each row's latents, descending in units of unit decoder rows."""
        k = self.condition.k
        if latents.active is None:
            values, order = latents.values, (latents.values * self.W_dec.norm(dim=1)).detach().topk(k, dim=1).indices
            columns = order
        else:
            order = latents.active.scores.view(-1, k).argsort(dim=1, descending=True)
            values, columns = latents.values.view(-1, k), latents.active.column.view(-1, k).gather(1, order)
        return values.gather(1, order).T.contiguous(), columns.T.contiguous()


def _over_prefixes(
    values: Tensor, columns: Tensor, W_dec: Tensor, error: Tensor, together: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the last prefix to the first, `together` rows at a time; `error [n, d_out]` is that of all k latents.

    Returns the sum of all `e_j ** 2`, `w_i . s_i [k, n]`, the rows' `f_i s_i [d_sae, d_out]` and `s_1 [d_out]`,
    the latter two summed over rows; `values` and `columns` are `[k, n]`.
    """
    squares, to_bias = error.new_zeros(()), error.new_zeros(error.shape[1])
    to_values, to_rows = torch.zeros_like(values), torch.zeros_like(W_dec)
    for start in range(0, len(error), together):
        some = slice(start, start + together)
        rest = error[some].clone()
        later = torch.zeros_like(rest)  # s_j
        for j in reversed(range(len(values))):
            later += rest
            squares = squares + torch.linalg.vector_norm(rest).square()
            rows, value = W_dec.index_select(0, columns[j, some]), values[j, some, None]
            to_values[j, some] = (rows * later).sum(1)
            to_rows.index_add_(0, columns[j, some], later * value)
            rest += rows.mul_(value)
        to_bias = to_bias + later.sum(0)
    return squares, to_values, to_rows, to_bias
