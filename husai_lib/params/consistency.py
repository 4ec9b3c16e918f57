"""Phase 4d: the consistency objective, swept over its weight, and when a sweep is accepted."""

from typing import Annotated, Literal

from pydantic import Field

from husai_lib.params.conditions import Condition, ReferenceParams, check_consistent
from husai_lib.params.sections import Count, Positive, Section, Weight, distinct

Score = Literal["saebench", "cebench", "alignment", "ev"]
AT = "_lambda_"
"""What stands in the name of a group between that of its condition and its weight."""
IN_NAMES = str.maketrans({".": "_", "-": "m", "+": None})
"""What stands in names for the characters of a number."""


class AcceptanceParams(Section):
    """Thresholds that a weight of the objective must meet; those of the earlier phase 4d are the defaults."""

    min_delta_pwmcc: float = 0.0
    """PW-MCC of unrelated seeds minus that of random decoders must reach this."""
    min_delta_lcb: float = 0.0
    """The same conservatively: the lower bound of the former minus the upper bound of the latter."""
    max_ev_drop: float = 0.05
    """The explained variance at lambda 0 minus that of the group may not exceed this."""
    min_external_delta: float = 0.0
    """The mean SAEBench delta (AUC) of the group must reach this."""
    min_cebench_delta: float | None = None
    """The mean CE-Bench delta of the group must reach this; null does not ask for it."""


class KnownTruthParams(Section):
    """SAEs of activations whose true features are known, with and without the objective."""

    features: Positive = 128
    """Number of true features, each a direction; an SAE has as many latents."""
    d_in: Positive = 64
    """Dimensions of an activation."""
    active: Positive = 6
    """Mean number of features that are active in a row, and k of the SAEs."""
    rows: Positive = 32768
    """Number of training rows."""
    training_samples: Positive = 393216
    """Rows shown to one SAE, repeats included."""
    seeds: Annotated[list[Count], Field(min_length=4)] = [0, 1, 2, 3]  # noqa: RUF012 -- pydantic copies it
    """Training seeds, dealt to two references."""

    def _check(self) -> None:
        distinct(self.seeds, "seed")
        if self.active > self.features:
            raise ValueError(f"active = {self.active} exceeds features = {self.features}; lower it")


class ConsistencyParams(ReferenceParams):
    """Conditions trained with the consistency objective at several weights, over several seeds."""

    conditions: list[Condition] = Field(min_length=1)
    """What is trained at every weight; a condition names its architecture and whatever differs from `sae`."""
    lambdas: Annotated[list[Weight], Field(min_length=2)]
    """Weights of the objective, ascending; the first is 0, which all others are compared with."""
    seeds: list[Count] = []  # noqa: RUF012 -- pydantic copies it
    """Training seeds; the cycle's by default."""
    acceptance: AcceptanceParams = AcceptanceParams()
    """Thresholds of the sweep."""
    external_score: dict[Score, Weight] = {"saebench": 0.70, "cebench": 0.20, "alignment": 0.05, "ev": 0.05}  # noqa: RUF012
    """Weights of the validation metrics by which the checkpoint of each weight is chosen among its seeds."""
    known_truth: KnownTruthParams = KnownTruthParams()
    """The same sweep on activations with known features."""

    def _check(self) -> None:
        super()._check()
        if self.lambdas != sorted(set(self.lambdas)) or self.lambdas[0] != 0:
            raise ValueError(f"lambdas = {self.lambdas} do not ascend from 0.0; sort them and start with it")
        distinct(self.seeds, "seed")
        distinct([condition.name for condition in self.conditions], "condition")
        if not any(self.external_score.values()):
            raise ValueError("external_score: all weights are 0, so that no seed is better; give at least one above 0")
        for condition in self.conditions:
            if condition.consistency:
                raise ValueError(f"condition {condition.name!r} has its own consistency; leave it out of a sweep")
            check_consistent(condition.architecture)
        if len(self.seeds) == 1:
            raise ValueError("seeds: a single seed agrees with none; give at least 2, or leave them out")

    def swept(self) -> list[Condition]:
        """Every condition at every weight, named after both; at 0 without objective."""
        shared = self.model_dump(include={*ReferenceParams.model_fields})
        found = []
        for condition in self.conditions:
            for weight in self.lambdas:
                number = repr(weight).removesuffix(".0").translate(IN_NAMES)
                name = f"{condition.name}{AT}{number}"
                objective = shared | {"lambda": weight} if weight else None
                found.append(Condition(**condition.model_dump() | {"name": name, "consistency": objective}))
        return found

    def without_objective(self) -> list[Condition]:
        """The swept conditions under their names, all trained without the objective: what their nulls are."""
        return [condition.model_copy(update={"consistency": None}) for condition in self.swept()]

    def base_of(self, name: str) -> str:
        """The name of the group at lambda 0 that the group `name` is compared with."""
        return f"{plain_name(name)}{AT}0"


def plain_name(group: str) -> str:
    """The name of a swept condition in the parameters, from that of one of its groups."""
    return group.rpartition(AT)[0]
