"""What is measured: sparse probing, CE-Bench and the stress controls."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from husai_lib.params.sections import Positive, Section, distinct

Sizes = Annotated[list[Positive], Field(min_length=1)]


class ProbingParams(Section):
    """SAEBench sparse probing by the protocol of sae-probes."""

    setting: Literal["normal", "scarcity", "imbalance"] = "normal"
    """`normal` trains a probe on up to 1024 rows, half of each class; `scarcity` and `imbalance` train one at each of
    the protocol's numbers of rows, or shares of class 1."""
    penalty: Literal["l1", "l2"] = "l1"
    """Penalty of the logistic regression on latents; the one on raw activations is always L2."""
    binarize: bool = False
    """Whether a probe sees only if a latent fires, not how strongly; only in the setting `normal`."""
    ks: Annotated[Sizes, AfterValidator(sorted)] = [1, 2, 5]  # noqa: RUF012 -- pydantic copies it
    """Numbers of latents that a probe may use; the best is chosen."""
    choose_k: Literal["validation", "test"] = "validation"
    """Rows on which the best k is chosen; `test` only reproduces old numbers and is labelled as such."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Which `saebench_delta` selection ranks by: without prompts that occur more than once, or with them, as published.
    Both are computed; the gate always reads `drop`."""
    splits: Annotated[int, Field(ge=1, le=20)] = 5
    """Splits of each data set into training and test rows, whose AUCs are averaged; with duplicates only the first."""
    seed: int = 42
    """Seed of the first split and of the fits (sae-probes: 42); further splits have the seeds after it."""

    def _check(self) -> None:
        if self.binarize and self.setting != "normal":
            raise ValueError(f"binarize: sae-probes ignores it in the setting {self.setting}; use normal")


class WidthStudyParams(Section):
    """TopK SAEs, random and trained, that show how CE-Bench scores depend on width and L0."""

    widths: Sizes = [32, 64]  # noqa: RUF012 -- pydantic copies it
    """Numbers of latents of the trained SAEs; each also has a random SAE beside it."""
    random_widths: list[Positive] = [256]  # noqa: RUF012 -- pydantic copies it
    """Further numbers of latents, for random SAEs only: these need no training."""
    ks: Sizes = [4, 8]  # noqa: RUF012 -- pydantic copies it
    """Numbers of active latents a row, each at every width."""

    def _check(self) -> None:
        widths = distinct([*self.widths, *self.random_widths], "width")
        if max(distinct(self.ks, "k")) > min(widths):
            raise ValueError(f"k = {max(self.ks)} exceeds a width of {min(widths)}: more active latents than latents")


class ContrastiveParams(Section):
    """CE-Bench: how well latents separate the two stories of a pair."""

    max_rows: Positive = 200
    """Number of pairs used, from the start of the file."""
    independence: Literal["as_published", "as_released"] = "as_published"
    """Whether the independence part subtracts the mean over all pairs (the paper) or zero (the released code)."""
    permutations: Annotated[int, Field(ge=100)] = 100
    """Number of random assignments of a pair's tokens to its stories, the null of the calibrated score."""
    seed: int = 0
    """Seed of these assignments."""
    study: WidthStudyParams = WidthStudyParams()
    """The study of how scores depend on width and L0."""


class StressParams(Section):
    """The controls that the candidate must survive."""

    random_model: bool = True
    """Whether to train the same recipe on the model with re-initialised weights, and to draw random decoders."""
    random_models: Positive = 2
    """Number of re-initialisations of the model, each a control of its own."""
    transcoder: bool = True
    """Whether to train a matched TopK transcoder over the MLP of the same layer."""
    ood: bool = True
    """Whether to fit probes in domain and test them on shifted sets."""
    ood_max_rows: Annotated[int, Field(ge=1124)] = 1500
    """Rows of an in-domain task, the first half as many of each class; 1024 train the probe."""
