"""The registry of architectures, each with its own hyperparameters."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model

from husai_lib.params.sections import Positive, Rate, Section, Share, Weight


def _nested(shares: list[float]) -> list[float]:
    if shares != sorted(set(shares)) or shares[-1:] != [1.0]:
        raise ValueError(f"widths must ascend to 1.0, but they are {shares}")
    return shares


RouteMode = Literal["expert_topk", "global_mask"]
Kinds = Annotated[list[Literal["topk", "standard"]], Field(min_length=2)]
Widths = Annotated[list[Annotated[float, Field(gt=0, le=1)]], AfterValidator(_nested)]


def _options(**fields: Any) -> type[Section]:
    return create_model("Hyperparameters", __base__=Section, **fields)


# One entry per architecture: hyperparameter=(type, default). The docstring of its module,
# `husai_lib.saes.architectures.<name>`, explains them; `SaeParams` holds the shared ones.
ARCHITECTURES: dict[str, type[Section]] = {
    "topk": _options(aux_loss_coefficient=(Weight, 1.0)),
    "standard": _options(l1_coefficient=(Weight, 1.0), l1_warm_up_fraction=(Share, 0.1),
                         aux_loss_coefficient=(Weight, 0.0)),
    "batchtopk": _options(aux_loss_coefficient=(Weight, 1.0), topk_threshold_lr=(Share, 0.01)),
    "jumprelu": _options(l0_coefficient=(Weight, 1.0), l0_warm_up_fraction=(Share, 0.1), bandwidth=(Rate, 0.05),
                         init_threshold=(Weight, 0.01), aux_loss_coefficient=(Weight, 0.0)),
    "matryoshka_batchtopk": _options(widths=(Widths, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]),
                                     aux_loss_coefficient=(Weight, 1.0), topk_threshold_lr=(Share, 0.01)),
    "gated": _options(l1_coefficient=(Weight, 1.0), l1_warm_up_fraction=(Share, 0.1),
                      aux_loss_coefficient=(Weight, 0.0)),
    "hierarchical_topk": _options(aux_loss_coefficient=(Weight, 1.0)),
    "routed_topk": _options(num_experts=(Positive, 4), route_mode=(RouteMode, "expert_topk"),
                            route_balance=(Weight, 0.1), route_entropy=(Weight, 0.0), robust_noise_std=(Weight, 0.0),
                            route_consistency=(Weight, 0.0), decoder_diversity=(Weight, 0.0),
                            aux_loss_coefficient=(Weight, 1.0)),
    "route_sae": _options(layers=(Positive, 2), aux_loss_coefficient=(Weight, 1.0)),
    "layerwise": _options(layers=(Kinds, ["topk", "standard"]), l1_coefficient=(Weight, 1.0),
                          l1_warm_up_fraction=(Share, 0.1), aux_loss_coefficient=(Weight, 1.0)),
    "topk_transcoder": _options(aux_loss_coefficient=(Weight, 1.0), skip=(bool, False)),
}  # fmt: skip
