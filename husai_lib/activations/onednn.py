"""Float32 matrix products on a CPU by oneDNN, in at most half the time of MKL on processors of AMD."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, without a gradient; not by oneDNN on a GPU, in another precision or under autocast."""
    float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (x.is_cpu and float32 and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return functional.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class LinearByOneDnn(TorchFunctionMode):
    """While it is entered, every linear layer computes by `linear`, without a gradient."""

    @override
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (linear if function is functional.linear else function)(*args, **(kwargs or {}))
