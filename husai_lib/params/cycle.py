"""The parameters of a cycle, read from `params/*.yaml` and refused whole if one key is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, create_model, model_validator

from husai_lib.errors import ParameterError
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams, StressParams
from husai_lib.params.catalogue import layer_count, local_path
from husai_lib.params.conditions import BaselineParams, Condition, SaeParams, is_baseline_name
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.params.rules import ConfirmationParams, EarlierRun, GateParams, SelectionParams
from husai_lib.params.sections import NAME, Count, Section, check, distinct
from husai_lib.params.strict_yaml import override, parse_yaml


class Sections(Section):
    """Several sections of a cycle; conditions take what they leave out from `sae`, where that is given."""

    @model_validator(mode="before")
    @classmethod
    def _complete_conditions(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(sae := data.get("sae"), dict):
            return data

        def complete(section: dict[str, Any]) -> dict[str, Any]:
            if not isinstance(given := section.get("conditions"), list):
                return section
            return section | {"conditions": [sae | one if isinstance(one, dict) else one for one in given]}

        sweep = data.get("consistency")
        return complete(data) | ({"consistency": complete(sweep)} if isinstance(sweep, dict) else {})


class CycleParams(Sections):
    """Everything one cycle does: every choice, thresholds included."""

    cycle: str = Field(pattern=NAME)
    """Name of the cycle and of its folder under `evidence/`."""
    summary: str = Field(min_length=1)
    """One sentence on what the cycle is for."""
    seeds: list[Count] = Field(min_length=2)
    """Seeds of every condition, at least 2, as stability is measured across seeds."""
    model: ModelParams
    """The language model."""
    texts: TextParams
    """The texts and their roles."""
    activations: ActivationParams
    """The activations that SAEs are trained and measured on."""
    sae: SaeParams
    """What all conditions share."""
    conditions: list[Condition] = Field(min_length=1)
    """What is compared. In YAML a condition names its architecture and whatever differs from `sae`."""
    consistency: ConsistencyParams | None = None
    """Conditions trained with the consistency objective; without this section the step is not run."""
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
    """Earlier runs that this cycle must improve on, as `<cycle>/<run>` or `imported/<name>`."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        distinct(self.seeds, "seed")
        distinct(self.earlier, "earlier run")
        distinct([condition.name for condition in self.conditions], "condition")
        sweep = self.consistency
        if sweep and not self.activations.validation_rows:
            raise ValueError("activations.validation_rows = 0, but consistency chooses checkpoints by them; give some")
        if "consistency" in self.selection.sources and not sweep:
            raise ValueError("selection.sources: there is no section consistency; leave it out or add the section")
        own = [condition.consistency for condition in self.conditions if condition.consistency]
        for aligned in [sweep, *own] if sweep else own:
            for seeds in (getattr(aligned, "seeds", []) or self.seeds, self.confirmation.seeds):
                aligned.check_seeds(seeds)
        joined = self.activations.hook_name.count("+") + 1
        if twice := sorted({*self.seeds, *(sweep.seeds if sweep else ())} & {*self.confirmation.seeds}):
            raise ValueError(f"confirmation.seeds: {twice[0]} is also one of seeds; fresh seeds confirm, others do not")
        for condition in [*self.conditions, *(sweep.conditions if sweep else ())]:
            if is_baseline_name(condition.name):
                raise ValueError(f"condition {condition.name!r} has the name of a baseline; choose another name")
            if condition.architecture == "topk_transcoder":
                raise ValueError("a transcoder is no condition but a control, switched on by stress.transcoder")
            layers = condition.hyperparameters.get("layers", joined)
            if (needed := layers if isinstance(layers, int) else len(layers)) != joined:
                raise ValueError(
                    f"condition {condition.name!r} reads {needed} layers but activations.hook_name names {joined}; "
                    "join as many hooks by '+'"
                )
        if self.selection.min_seeds > len(self.seeds):
            raise ValueError(f"selection.min_seeds = {self.selection.min_seeds}, but there are {len(self.seeds)} seeds")
        path = local_path(self.model.name.removeprefix("random:"))
        count = layer_count(path) if path else math.inf  # the files of a hub model are checked when they are loaded
        if count is None:
            raise ValueError(f"model.name = {self.model.name!r} is no complete GGUF file or Hugging Face folder")
        if self.activations.layer >= count:
            raise ValueError(f"{self.activations.hook_name} is beyond the model's {count} layers, 0 to {count - 1}")
        return self

    @property
    def sweeps(self) -> list[tuple[list[Condition], list[int]]]:
        """Everything that needs matched baselines: conditions, with the seeds at which they are trained."""
        sweep = self.consistency
        return [(self.conditions, self.seeds), *([(sweep.conditions, sweep.seeds or self.seeds)] if sweep else [])]


def load_cycle(path: Path, assignments: Iterable[str] = ()) -> CycleParams:
    """The checked parameters of a cycle.

    Raises ParameterError with one sentence that names the file, the key and the nearest valid choice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParameterError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror}; name a file such as params/quickstart.yaml") from None
    return check(CycleParams, override(parse_yaml(text, str(path)), assignments), str(path))


def check_sections(given: dict[str, Any], source: str) -> Any:
    """The sections of a cycle that one step was given, each checked, as attributes by their names.

    Where `sae` is given too, conditions may be short, as in a parameter file.
    """
    fields: dict[str, Any] = {name: (CycleParams.model_fields[name].annotation, ...) for name in given}
    return check(create_model("StepParams", __base__=Sections, **fields), given, source)
