"""Phase 4e: one condition over token budgets, layers and widths."""

import re
from collections.abc import Sequence
from itertools import combinations, product
from typing import Annotated

from pydantic import Field

from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams
from husai_lib.params.sections import Count, Positive, Section, distinct

Levels = Annotated[list[Positive], Field(min_length=1)]
AXES = ("layer", "tokens", "d_sae")
"""What the grid varies, in the order of its points."""


def name_of(point: Sequence[int]) -> str:
    """The name of the condition at a point: layer, token budget and width."""
    return "_".join(f"{axis}_{value}" for axis, value in zip(AXES, point, strict=True))


def point_of(name: str) -> tuple[int, int, int]:
    """Layer, token budget and width of the condition of this name, or of its baseline."""
    layer, tokens, d_sae = (int(number) for number in re.findall(r"(?:layer|tokens|d_sae)_(\d+)", name))
    return layer, tokens, d_sae


class ScalingParams(Section):
    """A grid: every token budget at every layer and width."""

    condition: Condition
    """What is trained; it takes what it leaves out from `sae`."""
    tokens: Levels
    """Token budgets: numbers of distinct token positions to train on, outliers included, all from the same start of the
    texts."""
    hook_layers: Annotated[list[Count], Field(min_length=1)]
    """Layers of the cycle's kind of hook."""
    d_sae: Levels
    """Numbers of latents."""
    epochs: Positive = 6
    """Passes over the token budget."""
    seeds: list[Count] = []  # noqa: RUF012 -- pydantic copies it
    """Seeds of every point; the cycle's by default."""

    def _check(self) -> None:
        for key in ("tokens", "hook_layers", "d_sae"):
            if (values := getattr(self, key)) != sorted({*values}):
                raise ValueError(f"{key} = {values} do not ascend; sort them")
        distinct(self.seeds, "seed")
        if self.condition.consistency:
            raise ValueError("condition: the grid is of plain SAEs; leave out consistency, or write a sweep of it")
        if "layers" in self.condition.hyperparameters:
            raise ValueError(f"condition: {self.condition.architecture} reads joined layers; name one that reads one")
        self.conditions()  # raises where a width does not fit the condition

    @property
    def levels(self) -> dict[str, list[int]]:
        """The values of each axis, ascending."""
        return dict(zip(AXES, (self.hook_layers, self.tokens, self.d_sae), strict=True))

    def conditions(self) -> list[Condition]:
        """The condition at every point, layers outermost."""
        given, found = self.condition.model_dump(), []
        for point in product(*self.levels.values()):
            _, tokens, d_sae = point
            own = {"name": name_of(point), "d_sae": d_sae, "training_samples": tokens * self.epochs}
            found.append(Condition(**given | own | {"batch_size": min(given["batch_size"], tokens)}))
        return found

    def effects(self) -> list[str]:
        """Every axis that varies, and every pair of them: what the grid can tell apart."""
        varied = [axis for axis, levels in self.levels.items() if len(levels) > 1]
        return [*varied, *(" x ".join(pair) for pair in combinations(varied, 2))]

    def read_at(self, activations: ActivationParams) -> list[ActivationParams]:
        """What is read at each layer: as the cycle reads its own, at the largest budget."""
        kind = activations.hook_name.split("+")[0].split(".", 2)[2]
        return [
            activations.model_copy(update={"hook_name": f"blocks.{layer}.{kind}", "training_rows": self.tokens[-1]})
            for layer in self.hook_layers
        ]
