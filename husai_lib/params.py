"""The parameters of a cycle: pydantic models of `params/*.yaml`, refused whole if one key is wrong.

Everything here is checked without torch, so a mistake is reported within a second.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, create_model, model_validator

from husai_lib.catalogue import (
    HUSAI16,
    data_set_names,
    layer_count,
    local_path,
    shifted_data_set_names,
    text_set_names,
)
from husai_lib.conditions import BaselineParams, Condition, SaeParams
from husai_lib.errors import ParameterError
from husai_lib.files import REPOSITORY
from husai_lib.sections import NAME, Count, Positive, Section, Weight, one_of
from husai_lib.strict_yaml import override, parse_yaml

POINT = r"blocks\.\d+\.(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_attn_out|hook_mlp_out|mlp\.hook_in)"
HOOK = rf"^{POINT}(\+{POINT})*$"
P = TypeVar("P", bound=BaseModel)
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------
# What a value must be
# ---------------------------------------------------------------------------------------------


def _distinct(values: list[T], what: str) -> list[T]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{what} {value!r} is given twice; keep one")
    return values


def _model_source(name: str) -> str:
    path = local_path(name.removeprefix("random:"))
    if path and not path.exists():
        raise ValueError(f"no file or folder at {name!r}")
    return name


def _stories(name: str) -> str:
    if name.endswith(".jsonl") and not (REPOSITORY / name).is_file():
        raise ValueError(f"no file at {name!r}; write 'offline' for the stories of this repository")
    return name


def _named_sets(names: Any) -> Any:
    groups = {"all": list(data_set_names()), "husai16": HUSAI16}
    return groups.get(names, names) if isinstance(names, str) else names


def _ascending(hook_name: str) -> str:
    points = [point.split(".", 2) for point in hook_name.split("+")]
    layers = [int(layer) for _, layer, _ in points]
    if len({kind for _, _, kind in points}) > 1 or layers != sorted(set(layers)):
        raise ValueError(f"{hook_name!r} must join hooks of one kind, their layers ascending")
    return hook_name


Metric = Literal["saebench", "cebench", "train_ev"]
WEIGHTS: dict[str, dict[Metric, float]] = {
    "balanced": {"saebench": 0.5, "cebench": 0.5, "train_ev": 0.1},
    "probing_first": {"saebench": 0.70, "cebench": 0.25, "train_ev": 0.05},
}
"""Named sets of selection weights; earlier cycles used both."""
RUN = r"[a-z][a-z0-9_]*/[A-Za-z0-9][A-Za-z0-9_.-]*"


def _named_weights(given: Any) -> Any:
    return WEIGHTS[one_of(given, WEIGHTS, "set of weights")] if isinstance(given, str) else given


Weights = Annotated[dict[Metric, Weight], BeforeValidator(_named_weights), Field(min_length=3)]
EarlierRun = Annotated[str, Field(pattern=rf"^{RUN}$")]
"""`<cycle>/<run>` of an earlier run, or `imported/<name>`."""
Source = Annotated[str, Field(pattern=rf"^({RUN}/)?[a-z][a-z0-9_]*$")]
"""A step of this run, or `<earlier run>/<step>`."""
Sizes = Annotated[list[Positive], Field(min_length=1)]
Tokens = Annotated[int, Field(ge=2, le=8192)]
TextSet = Annotated[str, AfterValidator(lambda name: one_of(name, text_set_names(), "data set"))]
DataSet = Annotated[str, AfterValidator(lambda name: one_of(name, data_set_names(), "data set"))]
ShiftedSet = Annotated[str, AfterValidator(lambda name: one_of(name, shifted_data_set_names(), "shifted data set"))]


class ModelParams(Section):
    """The language model whose activations the SAEs explain."""

    name: Annotated[str, AfterValidator(_model_source)]
    """Hub name, local Hugging Face folder, `.gguf` file, `package:<package>/<path>` for a file or
    folder inside an installed package, or `random:` before any of these for re-initialised weights.
    A relative path (`./...`) starts at the repository, where notebooks run."""
    prepend_bos: bool
    """Whether every text starts with the beginning-of-sequence token. Stated, never guessed:
    activations differ."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; activations are stored as float32."""
    seed: int = 0
    """Seed of the weights where `name` starts with `random:`."""


class TextParams(Section):
    """Which texts serve for what: sae-probes data sets by name; the four roles share none."""

    training: list[TextSet] = Field(min_length=1)
    """Data sets whose texts train the SAEs, those with more than two classes included."""
    held_out: list[TextSet] = Field(min_length=1)
    """Data sets whose texts measure reconstruction, sparsity and dead latents; the same choice."""
    probing: Annotated[list[DataSet], BeforeValidator(_named_sets), Field(min_length=1)]
    """Data sets of the sparse-probing benchmark: a list; `all`, the 113 of sae-probes; `husai16`, of earlier cycles."""
    ood: list[ShiftedSet] = Field(min_length=1)
    """Tasks of the out-of-distribution control: each must have a shifted set in sae-probes."""
    stories: Annotated[str, AfterValidator(_stories)] = "offline"
    """`offline` for the stories in `husai_lib/data`, a `.jsonl` file, or a hub data set
    (`GulkoA/contrastive-stories-v4`)."""

    @model_validator(mode="after")
    def _roles_share_nothing(self) -> TextParams:
        for evaluation in (self.probing, self.ood):  # a task may serve both
            _distinct([*self.training, *self.held_out, *evaluation], "data set")
        return self


class ActivationParams(Section):
    """Which activations are read, and how many."""

    hook_name: Annotated[str, Field(pattern=HOOK), AfterValidator(_ascending)]
    """TransformerLens name of the activation, such as `blocks.2.hook_resid_post`. Names of several layers joined by
    `+` give rows that hold their activations side by side."""
    training_rows: Positive
    """Token positions to train on, drawn over all training texts in proportion."""
    held_out_rows: Positive
    """Token positions to measure on."""
    context_tokens: Tokens = 128
    """Training and held-out texts are cut to this many tokens."""
    probe_tokens: Tokens = 1024
    """Prompts of the probing data sets are cut to their last tokens, this many (sae-probes: 1024)."""
    skip_positions: Annotated[int, Field(ge=0, le=16)] = 1
    """First positions of every text that are left out: BOS is an attention sink with an outlier norm."""
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = None
    """Rows whose norm exceeds this multiple of the training rows' median norm are left out (attention
    sinks at delimiters would dominate explained variance); null keeps all."""
    batch_tokens: Positive = 4096
    """Padded tokens in one forward pass."""
    seed: int = 0
    """Seed of the draw of texts."""

    @property
    def layer(self) -> int:
        """The block the hook is in; the last one of a joined hook."""
        return int(self.hook_name.split("+")[-1].split(".")[1])


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
        widths = _distinct([*self.widths, *self.random_widths], "width")
        if max(_distinct(self.ks, "k")) > min(widths):
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


class SelectionParams(Section):
    """How one group is chosen among all that were measured."""

    rules: Literal["current", "2026-02"] = "current"
    """`2026-02` reproduces decisions of that time: 1.96 standard errors, conditions merged by name over all sources, no
    question of what was measured on what or at which L0, the representative the best-scoring seed."""
    sources: Annotated[list[Source], Field(min_length=1)] = ["frontier"]  # noqa: RUF012 -- pydantic copies it
    """Where candidates come from: steps of this run, and steps of earlier runs as `<cycle>/<run>/<step>`."""
    mode: Literal["lcb", "mean"] = "lcb"
    """Rank groups by the lower confidence bound of their mean, or by the mean."""
    grouping: Literal["condition", "seed"] = "condition"
    """`seed` ranks every SAE by itself, by its values: it rewards the luckiest seed, and is there for comparison."""
    interval: Literal["t", "normal", "bootstrap"] = "t"
    """How a bound over seeds is computed; `normal` only reproduces old decisions."""
    scaling: Literal["minmax", "rank"] = "minmax"
    """How metrics become scores: min-max over the eligible groups, or the rank among the Pareto front, which no
    dominated group can change."""
    min_seeds: Positive = 3
    """Groups with fewer seeds are dropped."""
    require_both_external: bool = True
    """Drop members without both external deltas."""
    require_matched_l0: bool = True
    """Drop groups whose L0 is more than 10 % off the target k: their CE-Bench baseline is not matched."""
    require_matched_baseline: bool = True
    """Drop groups whose CE-Bench delta is against a baseline of another width or L0, or of unknown ones."""
    min_saebench_delta: float | None = None
    """Floor on a member's SAEBench delta; null for none."""
    min_cebench_delta: float | None = None
    """Floor on a member's CE-Bench delta; null for none."""
    weights: Weights = WEIGHTS["balanced"]
    """Weights of the scaled metrics in the joint score, or the name of a set: `balanced` (0.5, 0.5, 0.1) or
    `probing_first` (0.70, 0.25, 0.05)."""
    bootstraps: Count = 2000
    """Bootstraps over seeds behind each group's selection probability."""
    seed: int = 0
    """Seed of the bootstraps."""

    @model_validator(mode="before")
    @classmethod
    def _rules_of_then(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("rules") == "2026-02":
            return {"interval": "normal", "require_matched_l0": False, **data}
        return data

    @model_validator(mode="after")
    def _ranks(self) -> SelectionParams:
        _distinct(self.sources, "source")
        if self.rules == "2026-02" and (self.interval, self.scaling) != ("normal", "minmax"):
            raise ValueError("the rules 2026-02 know interval: normal and scaling: minmax only; leave both out")
        if self.mode == "lcb" and self.grouping == "condition" and self.min_seeds < 2 and self.interval != "normal":
            raise ValueError("min_seeds must be at least 2 in lcb mode: one seed has no bound")
        return self


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


class GateParams(Section):
    """Thresholds of the release gate. A required gate without a result fails."""

    basis: Literal["bound", "value"] = "bound"
    """Whether a gate reads the conservative end of the 95 % interval or the estimate."""
    min_random_model_delta: float = 0.0
    """PW-MCC of the candidate minus that of each control must exceed this."""
    min_transcoder_delta: float = 0.0
    """PW-MCC of the transcoder minus the candidate's must reach this."""
    max_ood_drop: float = 0.10
    """SAEBench delta in domain minus out of domain may not exceed this."""
    min_saebench_delta: float = 0.0
    """The candidate group's SAEBench delta must reach this."""
    min_cebench_delta: float = 0.0
    """The candidate group's CE-Bench delta against the matched baseline must reach this."""
    require_random_model: bool = True
    require_transcoder: bool = True
    require_ood: bool = True
    require_external: bool = True


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
        _distinct(self.seeds, "seed")
        _distinct(self.earlier, "earlier run")
        _distinct([condition.name for condition in self.conditions], "condition")
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


def check(model: type[P], data: dict[str, Any], source: str) -> P:
    """`data` as a `model`; ParameterError describes the first mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ParameterError(f"{source}: {_sentence(error.errors()[0])}") from None


def _sentence(mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"] if part not in {"[key]", "hyperparameters"})
    match mistake["type"], mistake["input"]:
        case "missing", _:
            return f"{key} is missing; add it"
        case "value_error", _ if isinstance(mistake["ctx"]["error"], ValidationError):  # of hyperparameters
            return f"{key}.{_sentence(mistake['ctx']['error'].errors()[0])}"
        case "value_error", _:
            return f"{key}: {mistake['ctx']['error']}".removeprefix(": ")
        case "float_type", str(text) if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text):
            return f"{key} = {text!r} is text in YAML; write it with a decimal point, such as 1.0e-5"
        case _, value:
            return f"{key} = {reprlib.repr(value)}: {mistake['msg']}"
