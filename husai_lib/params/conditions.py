"""What is trained: the conditions, and the baselines they are compared with."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from husai_lib.files import REPOSITORY
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.params.sections import NAME, Count, Positive, Rate, Section, Weight, distinct, one_of


class SaeParams(Section):
    """What all SAEs of the cycle share; a condition may override any of it."""

    d_sae: Positive
    """Number of latents."""
    k: Positive
    """Target L0: latents active per row."""
    training_samples: Positive
    """Rows shown to one SAE, repeats included."""
    batch_size: Positive = 1024
    """Rows in one training step."""
    learning_rate: Rate = 1e-3
    """Adam's step size, decayed linearly to zero over the last fifth of the steps."""
    match_l0: Literal["k"] | None = None
    """`k` tunes the L1 or L0 coefficient during training, from the value given, until L0 is about k; architectures
    without such a coefficient have an L0 of k by construction."""
    aligned: bool = False
    """Keep the inner product of each latent's encoder and decoder direction at 1 (arXiv 2605.18629)."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of matrix products in training: `tf32` on a GPU, `bfloat16` by autocast; weights stay float32."""

    def _check(self) -> None:
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} exceeds d_sae = {self.d_sae}: more active latents than latents")
        if self.training_samples < self.batch_size:
            raise ValueError(f"training_samples = {self.training_samples} is less than one batch of {self.batch_size}")


BANKS = 2
"""Disjoint banks that seeds are dealt to where they align with each other; seeds of different banks are unrelated."""


class ReferenceParams(Section):
    """What the consistency objective aligns each seed with."""

    reference: Count | Literal["mutual"] | None = None
    """Seed of one frozen reference: an SAE of the same condition without objective. Or `mutual`: there is no reference;
    the seeds are dealt to two banks, and those of a bank align with each other."""
    references: list[Count] = []  # noqa: RUF012 -- pydantic copies it
    """Seeds of several unrelated references, to which the training seeds are dealt in turn."""
    assignment_interval: Positive = 4
    """Steps between two matchings of a decoder with its reference."""

    @field_validator("reference", mode="before")
    @classmethod
    def _is_a_seed_or_mutual(cls, value: Any) -> Any:
        return one_of(value, ["mutual"], "reference") if isinstance(value, str) else value

    def _check(self) -> None:
        distinct(self.references, "reference")
        if (self.reference is None) == (not self.references):
            raise ValueError("name one reference: <seed>, several references: [..], or reference: mutual")

    @property
    def frozen(self) -> list[int]:
        """Seeds of the frozen references; none under `mutual`."""
        return [self.reference] if isinstance(self.reference, int) else list(self.references)

    def bank_of(self, seeds: Sequence[int], i: int) -> tuple[int, ...]:
        """The seeds of the bank of `seeds[i]` under `mutual`: that of every second seed; empty with references."""
        return () if self.frozen else tuple(seeds[i % BANKS :: BANKS])

    def reference_of(self, seeds: Sequence[int], i: int) -> int:
        """What `seeds[i]` is aligned with: the seed of its reference, or the first of its bank."""
        return self.frozen[i % len(self.frozen)] if self.frozen else self.bank_of(seeds, i)[0]

    def check_seeds(self, seeds: list[int]) -> None:
        """Raise ValueError where these training seeds cannot be aligned as asked."""
        if own := sorted({*self.frozen} & {*seeds}):
            raise ValueError(f"consistency: seed {own[0]} would be its own reference; name another reference")
        if self.reference == "mutual" and 0 < len(seeds) < 4:
            has = f"there are {len(seeds)} seeds"
            raise ValueError(f"consistency: mutual needs two banks of two seeds, and {has}; give at least 4")


class ObjectiveParams(ReferenceParams):
    """The consistency objective: NMSE + lambda * (1 - mean |cos|) of decoder rows and their partners in a reference."""

    weight: Weight = Field(alias="lambda")
    """Weight of the penalty beside the NMSE, both without a unit; at 0 there is no objective."""


CONSISTENT = ("topk", "batchtopk", "matryoshka_batchtopk", "hierarchical_topk", "routed_topk", "standard")
"""Architectures that can be trained with the consistency objective."""


def check_consistent(architecture: str, where: str = "") -> None:
    """Raise ValueError for an architecture that cannot be trained with the consistency objective."""
    if architecture not in CONSISTENT:
        raise ValueError(f"{where}{architecture} has no such objective; use {', '.join(CONSISTENT)}")


class Condition(SaeParams):
    """Every hyperparameter of an SAE except its seed."""

    name: str = Field(pattern=NAME)
    """Name in tables and figures, unique in a cycle; by default the name of the architecture."""
    architecture: str
    """Name of the architecture, a key of `ARCHITECTURES`."""
    hyperparameters: dict[str, Any]
    """The architecture's own hyperparameters; in a parameter file they stand beside the shared ones."""
    consistency: ObjectiveParams | None = None
    """The objective that makes seeds learn the same latents; null for none."""

    @model_validator(mode="before")
    @classmethod
    def _gather_hyperparameters(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name, fields = one_of(str(data.get("architecture")), ARCHITECTURES, "architecture"), cls.model_fields
        if not isinstance(given := data.get("hyperparameters", {}), dict):
            what = f"hyperparameters: {given!r} is no mapping"
            raise ValueError(f"{what}; write the architecture's keys beside the others")  # noqa: TRY004 - for pydantic
        own = {key: value for key, value in data.items() if key not in fields} | given
        for key in own:
            one_of(key, [*ARCHITECTURES[name].model_fields, *(() if key in fields else fields)], f"{name} key")
        given = {key: value for key, value in data.items() if key in fields}
        return {"name": name, **given, "hyperparameters": ARCHITECTURES[name].model_validate(own).model_dump()}

    def _check(self) -> None:
        super()._check()
        own = self.hyperparameters
        if self.architecture == "layerwise":
            for key in ("d_sae", "k"):
                self._check_shared(key, len(own["layers"]), f"the {len(own['layers'])} layers")
        if self.architecture == "routed_topk":
            self._check_shared("d_sae", own["num_experts"], f"num_experts = {own['num_experts']}")
            if own["route_mode"] == "expert_topk" and self.k > (block := self.d_sae // own["num_experts"]):
                what = f"d_sae / num_experts = {block}, the latents of a block"
                raise ValueError(f"k = {self.k} exceeds {what}; lower num_experts")
        if self.consistency:
            check_consistent(self.architecture, "consistency: ")
        if self.aligned and self.architecture == "topk_transcoder":
            raise ValueError("aligned: a transcoder's encoder and decoder lie in different spaces; leave it out")

    @property
    def objective(self) -> ObjectiveParams | None:
        """The consistency objective, if its weight is not zero."""
        return self.consistency if self.consistency and self.consistency.weight else None

    def _check_shared(self, key: str, blocks: int, what: str) -> None:
        if (value := getattr(self, key)) % blocks:
            nearest = max(1, value // blocks) * blocks
            raise ValueError(f"{key} = {value} cannot be shared equally by {what}; {nearest} can")


def _sae_folder(name: str) -> str:
    for file in ("cfg.json", "sae_weights.safetensors"):
        if not (REPOSITORY / Path(name).expanduser() / file).is_file():
            raise ValueError(f"{name!r} holds no {file}; name a SAELens folder, which holds cfg.json and its weights")
    return name


class BaselineParams(Section):
    """What candidates are compared with: `train`, or an SAE given as a SAELens folder or a public release.

    SAELens' own recipe trains a baseline for each (d_sae, k) among the conditions, on the cycle's rows and seeds,
    unless the given SAE matches it.
    """

    folder: Annotated[str, AfterValidator(_sae_folder)] | None = None
    """A given SAE on this machine, as a SAELens folder; a relative path starts at the repository."""
    release: Annotated[str, Field(min_length=1)] | None = None
    """A given SAE of the hub: a release that SAELens lists, or a repository of SAELens folders."""
    sae_id: Annotated[str, Field(min_length=1)] | None = None
    """Name of the SAE in the release."""
    architecture: Literal["topk", "batchtopk", "standard"] = "topk"
    """SAELens' training class. TopK has an L0 of k by construction, so it is matched without tuning."""
    learning_rate: Rate = 3e-4
    """Adam's step size; the default is SAELens'."""
    l1_coefficient: Rate = 1.0
    """Coefficient of the L1 loss, used by `standard` only."""

    @model_validator(mode="before")
    @classmethod
    def _train_by_default(cls, data: Any) -> Any:
        if isinstance(data, str) and data != "train":
            raise ValueError(f"{data!r} is no baseline; write train, {{folder: …}} or {{release: …, sae_id: …}}")
        return {} if data == "train" else data

    def _check(self) -> None:
        if self.folder and (self.release or self.sae_id):
            raise ValueError("folder and release name two SAEs; keep one")
        if bool(self.release) != bool(self.sae_id):
            given, missing = ("release", "sae_id") if self.release else ("sae_id", "release")
            raise ValueError(f"{given} = {self.release or self.sae_id!r} names no SAE without {missing}; add it")

    @property
    def given(self) -> str:
        """The given SAE as messages name it; empty without one."""
        released = f"release {self.release}, {self.sae_id}" if self.release else ""
        return f"folder {self.folder}" if self.folder else released


def baseline_shapes(conditions: Iterable[SaeParams]) -> dict[str, SaeParams]:
    """The matched baselines that conditions need, by name: one for each (d_sae, k), trained as long as the longest."""
    longest = {(c.d_sae, c.k): c for c in sorted(conditions, key=lambda c: c.training_samples)}
    if len(longest) == 1:
        return {"baseline": next(iter(longest.values()))}
    return {baseline_name(f"{d_sae}_k{k}"): longest[d_sae, k] for d_sae, k in sorted(longest)}


def baseline_seeds(sweeps: Iterable[tuple[Sequence[SaeParams], Sequence[int]]]) -> dict[str, list[int]]:
    """The seeds that each matched baseline needs, by name: those at which conditions of its shape are trained."""
    sweeps = list(sweeps)
    shapes = baseline_shapes(condition for conditions, _ in sweeps for condition in conditions)
    return {
        name: list(dict.fromkeys(
            seed for conditions, seeds in sweeps for condition in conditions for seed in seeds
            if (condition.d_sae, condition.k) == (shape.d_sae, shape.k)
        ))
        for name, shape in shapes.items()
    }  # fmt: skip


def baseline_name(of: str) -> str:
    """The name of the trained baseline of a shape, or of a point of the grid of phase 4e."""
    return f"baseline_{of}"


def is_baseline_name(name: str) -> bool:
    """Whether a condition is a baseline: the given SAE, or a trained one."""
    return re.fullmatch(r"given|baseline(_\d+_k\d+|_layer_\d+_tokens_\d+_d_sae_\d+)?", name) is not None
