"""What is measured: sparse probing, CE-Bench and the stress controls."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from husai_lib.params.sections import Positive, Section, distinct

Sizes = Annotated[list[Positive], Field(min_length=1)]


class ProbingParams(Section):
    """SAEBench sparse probing by the protocol of sae-probes."""

    setting: Literal["normal", "scarcity", "imbalance"] = "normal"
    """`normal` trains a probe on up to 1024 rows, half of each class; `scarcity` and `imbalance` on fewer rows, or on
    another share of class 1, at all of the protocol's sizes or shares."""
    penalty: Literal["l1", "l2"] = "l1"
    """Of the logistic regression on latents; the one on raw activations is L2."""
    binarize: bool = False
    """Whether a probe sees only if a latent fires; the protocol knows this in the setting `normal`."""
    ks: Annotated[list[Positive], Field(min_length=1), AfterValidator(sorted)] = [1, 2, 5]  # noqa: RUF012 -- pydantic copies it
    """How many latents a probe may use."""
    choose_k: Literal["validation", "test"] = "validation"
    """Where the best k is chosen; `test` only reproduces old numbers and is labelled as such."""
    seed: int = 42
    """Seed of the splits and fits (sae-probes: 42)."""

    @model_validator(mode="after")
    def _protocol_has_it(self) -> ProbingParams:
        if self.binarize and self.setting != "normal":
            raise ValueError(f"binarize: sae-probes ignores it in the setting {self.setting}; use normal")
        return self


class WidthStudyParams(Section):
    """TopK SAEs that show how CE-Bench scores move with width and L0, random and trained as candidates are."""

    widths: Sizes = [32, 64]  # noqa: RUF012 -- pydantic copies it
    """Numbers of latents at which SAEs are trained, and random ones made."""
    random_widths: list[Positive] = [256]  # noqa: RUF012 -- pydantic copies it
    """Further widths, for random SAEs only: these take no training."""
    ks: Sizes = [4, 8]  # noqa: RUF012 -- pydantic copies it
    """Active latents a row, each at every width."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        widths = distinct([*self.widths, *self.random_widths], "width")
        if max(distinct(self.ks, "k")) > min(widths):
            raise ValueError(f"k = {max(self.ks)} exceeds a width of {min(widths)}: more active latents than latents")
        return self


class ContrastiveParams(Section):
    """CE-Bench: how latents separate the two stories of a pair."""

    max_rows: Positive = 200
    """Pairs used, from the start of the file."""
    independence: Literal["as_published", "as_released"] = "as_published"
    """Whether the independence part subtracts the mean over all pairs (the paper) or zero (the released code)."""
    permutations: Annotated[int, Field(ge=100)] = 100
    """Random deals of a pair's tokens in the calibrated score's null."""
    seed: int = 0
    """Seed of the deals."""
    study: WidthStudyParams = WidthStudyParams()


class StressParams(Section):
    """The controls that the candidate must survive."""

    random_model: bool = True
    """The same recipe on the same architecture with re-initialised weights, and random decoders."""
    transcoder: bool = True
    """A matched TopK transcoder over the MLP of the same layer."""
    ood: bool = True
    """Probes fitted in domain, tested on shifted sets."""
    ood_max_rows: Annotated[int, Field(ge=1124)] = 1500
    """Rows of an in-domain task, the first half as many of each class; 1024 train the probe."""
