"""Products by oneDNN are those of torch, wherever a model's layers multiply, and leave other precisions alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from husai_lib.activations import extraction, onednn
from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import LanguageModel
from husai_lib.activations.onednn import LinearByOneDnn, linear
from husai_lib.activations.texts import Text
from husai_lib.params.inputs import ActivationParams


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("shape", [(5, 7), (300, 576), (2, 9, 33)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_that_of_double_precision_up_to_rounding(shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = drawn(*shape), drawn(48, shape[-1]), drawn(48) if biased else None
    expected = x.double() @ weight.T.double() + (bias.double() if bias is not None else 0)
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_is_computed_as_torch_does(dtype: torch.dtype) -> None:
    x, weight = drawn(6, 8, dtype=dtype), drawn(4, 8, dtype=dtype)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))


def test_autocast_decides_the_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(drawn(6, 8), drawn(4, 8)).dtype == torch.bfloat16


def test_all_products_of_a_model_are_by_onednn_and_none_keeps_a_graph(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_onednn, asked = [], []

    def noted(*given: Any) -> Tensor:
        by_onednn.append(torch.is_inference_mode_enabled())
        return linear(*given)

    class Counted(LinearByOneDnn):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(function is functional.linear)
            return super().__torch_function__(function, types, args, kwargs)

    monkeypatch.setattr(onednn, "linear", noted)
    monkeypatch.setattr(extraction, "LinearByOneDnn", Counted)
    hook = "blocks.1.hook_resid_post"
    params = ActivationParams(hook_name=hook, training_rows=9, held_out_rows=9, seed=11)
    text_bank(tiny_model, [Text("a", "some words of a text that no other test reads")], params, [hook])
    assert sum(asked) == len(by_onednn) >= 2 * 4  # attention and MLP of two blocks have two layers each
    assert all(by_onednn)


def test_outside_of_it_layers_have_their_gradient() -> None:
    layer, x = nn.Linear(8, 4), drawn(6, 8)
    with torch.inference_mode(), LinearByOneDnn():
        inside = layer(x)
    outside = layer(x)
    torch.testing.assert_close(inside.clone(), outside.detach())
    assert outside.requires_grad
