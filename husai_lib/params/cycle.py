"""The parameters of a cycle, read from `params/*.yaml` and refused whole if one key is wrong."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model, model_validator

from husai_lib.errors import ParameterError
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams, StressParams
from husai_lib.params.catalogue import layer_count, local_path
from husai_lib.params.conditions import BaselineParams, Condition, SaeParams, is_baseline_name
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.params.rules import ConfirmationParams, EarlierRun, GateParams, SelectionParams
from husai_lib.params.scaling import ScalingParams
from husai_lib.params.sections import NAME, Count, Section, check, distinct
from husai_lib.params.strict_yaml import override, parse_yaml

STEPS = ("activations", "baselines", "frontier", "consistency", "scaling", "selection", "confirmation", "stress",
         "gate", "report")  # fmt: skip
"""The steps of a cycle; further sweeps have their own names."""


class SweepParams(Section):
    """By name, further conditions, trained and measured as those of the frontier are, in a step of their own."""

    conditions: list[Condition] = Field(min_length=1)
    """What is compared; a condition names its architecture and whatever differs from `sae`."""
    seeds: list[Count] = []  # noqa: RUF012 -- pydantic copies it
    """Seeds of every condition; the cycle's by default."""


Sweeps = dict[Annotated[str, Field(pattern=NAME)], SweepParams]


class Sections(Section):
    """Several sections of a cycle; conditions take what they leave out from `sae`, where that is given."""

    @model_validator(mode="before")
    @classmethod
    def _complete_conditions(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(sae := data.get("sae"), dict):
            return data

        def complete(section: Any) -> Any:
            if not isinstance(section, dict):
                return section
            found = {name: complete(value) for name, value in section.items()}
            if isinstance(one := section.get("condition"), dict) and "architecture" in one:  # a sweep may be called so
                found["condition"] = sae | one
            if isinstance(given := section.get("conditions"), list):
                found["conditions"] = [sae | one if isinstance(one, dict) else one for one in given]
            return found

        return complete(data)

    @property
    def trained(self: Any) -> dict[str, tuple[list[Condition], list[int]]]:
        """The steps that train candidates: conditions, with the seeds at which they are trained."""
        conditions, sweeps, objective = (getattr(self, name, None) for name in ("conditions", "sweeps", "consistency"))
        found = {"frontier": (conditions, self.seeds)} if conditions else {}
        found |= {name: (sweep.conditions, sweep.seeds or self.seeds) for name, sweep in (sweeps or {}).items()}
        if objective:
            found["consistency"] = (objective.swept(), objective.seeds or self.seeds)
        return found


class CycleParams(Sections):
    """Everything one cycle does: every choice, thresholds included."""

    cycle: str = Field(pattern=NAME)
    """Name of the cycle and of its folder under `evidence/`."""
    summary: str = Field(min_length=1)
    """One sentence on what the cycle is for."""
    seeds: list[Count] = Field(min_length=1)
    """Seeds of every condition. A single one has no stability and no bounds, so gates that need them are missing."""
    model: ModelParams
    """The language model."""
    texts: TextParams
    """The texts and their roles."""
    activations: ActivationParams
    """The activations that SAEs are trained and measured on."""
    sae: SaeParams
    """What all conditions share."""
    conditions: list[Condition] = []  # noqa: RUF012 -- pydantic copies it
    """What is compared, in the sweep `frontier`. In YAML a condition names its architecture and whatever differs from
    `sae`."""
    sweeps: Sweeps = {}  # noqa: RUF012 -- as above
    """Further sweeps of conditions by their names, each a step and a source of candidates of its own."""
    consistency: ConsistencyParams | None = None
    """Conditions trained with the consistency objective; without this section the step is not run."""
    scaling: ScalingParams | None = None
    """A grid of token budgets, layers and widths; without this section the step is not run."""
    baseline: BaselineParams = BaselineParams()
    """The SAE that CE-Bench deltas are taken against."""
    probing: ProbingParams = ProbingParams()
    """The sparse-probing benchmark."""
    contrastive: ContrastiveParams = ContrastiveParams()
    """The CE-Bench benchmark."""
    selection: SelectionParams = SelectionParams()
    """How the candidate is chosen."""
    confirmation: ConfirmationParams = ConfirmationParams()
    """The fresh seeds that the gate reads."""
    stress: StressParams = StressParams()
    """The stress controls."""
    gates: GateParams = GateParams()
    """The thresholds of the release gate."""
    earlier: list[EarlierRun] = []  # noqa: RUF012 -- pydantic copies it
    """Earlier runs that this cycle must improve on, as `<cycle>/<run>`, `<cycle>/newest` or `imported/<name>`."""

    def _check(self) -> None:
        if self.cycle == "imported":
            raise ValueError("cycle: 'imported' is the folder of imports; choose another name")
        self._check_conditions()
        self._check_seeds()
        self._check_sources()
        self._check_layers()

    def _check_conditions(self) -> None:
        if not self.trained:
            raise ValueError("there are no conditions, so nothing is trained; add conditions, sweeps or consistency")
        joined = self.activations.hook_name.count("+") + 1
        named = {name: conditions for name, (conditions, _) in self.trained.items()}
        for conditions in (named | ({"consistency": self.consistency.conditions} if self.consistency else {})).values():
            distinct([condition.name for condition in conditions], "condition")
            for condition in conditions:
                if is_baseline_name(condition.name):
                    raise ValueError(f"condition {condition.name!r} has the name of a baseline; choose another name")
                if condition.architecture == "topk_transcoder":
                    raise ValueError("a transcoder is no condition but a control, switched on by stress.transcoder")
                layers = condition.hyperparameters.get("layers", joined)
                if (needed := layers if isinstance(layers, int) else len(layers)) != joined:
                    reads = f"condition {condition.name!r} reads {needed} layers"
                    raise ValueError(f"{reads} but activations.hook_name names {joined}; join as many hooks by '+'")

    def _check_seeds(self) -> None:
        distinct(self.seeds, "seed")
        used, fresh = {*self.seeds}, self.confirmation.seeds
        for name, (conditions, seeds) in self.trained.items():
            used |= {*seeds}
            distinct(seeds, "seed")
            own = [one.consistency for one in conditions if one.consistency]
            for objective in [self.consistency] if self.consistency and name == "consistency" else own:
                objective.check_seeds(seeds)
                objective.check_seeds(fresh)
        if twice := sorted(used & {*fresh}):
            raise ValueError(f"confirmation.seeds: {twice[0]} is also one of seeds; fresh seeds confirm, others do not")
        most = max(len(seeds) for _, seeds in self.trained.values())
        if self.selection.min_seeds > most:
            raise ValueError(f"selection.min_seeds = {self.selection.min_seeds}, but there are {most} seeds")
        if self.consistency and len(self.trained["consistency"][1]) == 1:
            raise ValueError("consistency: a single seed agrees with none; give consistency.seeds at least 2")
        if self.consistency and not self.activations.validation_rows:
            raise ValueError("activations.validation_rows = 0, but consistency chooses checkpoints by them; give some")

    def _check_sources(self) -> None:
        for name in self.sweeps:
            if name in STEPS:
                raise ValueError(f"sweeps: {name!r} is the name of another step; choose another name")
        for source in self.selection.sources:
            if "/" not in source and source not in self.trained:
                what = f"selection.sources: this cycle trains no {source!r}"
                raise ValueError(f"{what}; name {' or '.join(self.trained)}, or add its section")
        distinct(self.earlier, "earlier run")

    def _check_layers(self) -> None:
        path = local_path(self.model.name.removeprefix("random:"))
        count = layer_count(path) if path else math.inf  # the files of a hub model are checked when they are loaded
        if count is None:
            raise ValueError(f"model.name = {self.model.name!r} is no complete GGUF file or Hugging Face folder")
        hooks = [self.activations, *(self.scaling.read_at(self.activations) if self.scaling else ())]
        for hook in hooks:
            if hook.layer >= count:
                raise ValueError(f"{hook.hook_name} is beyond the model's {count} layers, 0 to {count - 1}")


def load_cycle(path: Path, assignments: Iterable[str] = ()) -> CycleParams:
    """The checked parameters of a cycle; ParameterError names the file, the key and the nearest valid choice."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParameterError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror}; name a file such as params/quickstart.yaml") from None
    return check(CycleParams, override(parse_yaml(text, str(path)), assignments), str(path))


def given_to(step: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    """All sections of a cycle as a step sees them: a further sweep has conditions and seeds of its own."""
    sweep = (sections.get("sweeps") or {}).get(step, {})
    return {**sections, **{name: value for name, value in sweep.items() if value}}


def check_sections(given: dict[str, Any], source: str) -> Any:
    """The sections of a cycle that one step was given, each checked, as attributes by their names."""
    fields: dict[str, Any] = {name: (CycleParams.model_fields[name].annotation, ...) for name in given}
    return check(create_model("StepParams", __base__=Sections, **fields), given, source)
