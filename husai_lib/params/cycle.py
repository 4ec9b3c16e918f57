"""The parameters of a cycle: pydantic models of `params/*.yaml`, refused whole if one key is wrong.

Everything here is checked without torch, so a mistake is reported within a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, create_model, model_validator

from husai_lib.errors import ParameterError
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams, StressParams
from husai_lib.params.catalogue import (
    layer_count,
    local_path,
)
from husai_lib.params.conditions import BaselineParams, Condition, SaeParams
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.params.rules import EarlierRun, GateParams, SelectionParams
from husai_lib.params.sections import NAME, Count, Section, check, distinct
from husai_lib.params.strict_yaml import override, parse_yaml

# ---------------------------------------------------------------------------------------------
# What a value must be
# ---------------------------------------------------------------------------------------------


class Sections(Section):
    """Several sections of a cycle; conditions take what they do not say from `sae`, where that is given."""

    @model_validator(mode="before")
    @classmethod
    def _complete_conditions(cls, data: Any) -> Any:
        sae, conditions = (data.get("sae"), data.get("conditions")) if isinstance(data, dict) else (None, None)
        if isinstance(sae, dict) and isinstance(conditions, list):
            return data | {"conditions": [sae | given if isinstance(given, dict) else given for given in conditions]}
        return data


class CycleParams(Sections):
    """Everything one cycle does: every choice, thresholds included."""

    cycle: str = Field(pattern=NAME)
    """Name of the cycle and of its folder under `evidence/`."""
    summary: str = Field(min_length=1)
    """One sentence on what the cycle is for."""
    seeds: list[Count] = Field(min_length=2)
    """Seeds of every condition, at least 2: stability is across seeds. The first is no special one."""
    model: ModelParams
    texts: TextParams
    activations: ActivationParams
    sae: SaeParams
    conditions: list[Condition] = Field(min_length=1)
    """What is compared. In YAML a condition names its architecture and whatever differs from `sae`."""
    baseline: BaselineParams = BaselineParams()
    probing: ProbingParams = ProbingParams()
    contrastive: ContrastiveParams = ContrastiveParams()
    selection: SelectionParams = SelectionParams()
    stress: StressParams = StressParams()
    gates: GateParams = GateParams()
    earlier: list[EarlierRun] = []  # noqa: RUF012 -- pydantic copies it
    """Earlier runs that this cycle must improve on, as `<cycle>/<run>` or `imported/<name>`: the decision criteria."""

    @model_validator(mode="after")
    def _consistent(self) -> CycleParams:
        distinct(self.seeds, "seed")
        distinct(self.earlier, "earlier run")
        distinct([condition.name for condition in self.conditions], "condition")
        if "topk_transcoder" in [condition.architecture for condition in self.conditions]:
            raise ValueError("a transcoder is no condition but a control, switched on by stress.transcoder")
        joined = self.activations.hook_name.count("+") + 1
        for condition in self.conditions:
            layers = condition.hyperparameters.get("layers", joined)
            if (asked := layers if isinstance(layers, int) else len(layers)) != joined:
                raise ValueError(
                    f"condition {condition.name!r} reads {asked} layers but activations.hook_name names {joined}; "
                    "join as many hooks by '+'"
                )
        if self.selection.min_seeds > len(self.seeds):
            raise ValueError(f"selection.min_seeds = {self.selection.min_seeds}, but there are {len(self.seeds)} seeds")
        path = local_path(self.model.name.removeprefix("random:"))
        layers = layer_count(path) if path else math.inf  # a hub model's files are not here: its step will tell
        if layers is None:
            raise ValueError(f"model.name = {self.model.name!r} is no complete GGUF file or Hugging Face folder")
        if self.activations.layer >= layers:
            raise ValueError(f"{self.activations.hook_name} is beyond the model's {layers} layers, 0 to {layers - 1}")
        return self


# ---------------------------------------------------------------------------------------------
# Reading a file
# ---------------------------------------------------------------------------------------------


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
    """The sections of a cycle that one step was given, each checked; attributes are their names.

    Conditions may be written short, as in a parameter file, where `sae` is given too.
    """
    fields: dict[str, Any] = {name: (CycleParams.model_fields[name].annotation, ...) for name in given}
    return check(create_model("StepParams", __base__=Sections, **fields), given, source)
