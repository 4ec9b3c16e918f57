"""The parameters of a cycle: pydantic models of `params/*.yaml`, refused whole if one key is wrong.

Everything here is checked without torch, so a mistake is reported within a second.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import io
import re
import reprlib
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
import zstandard
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from husai_lib.errors import ParameterError

# One line an architecture: its module is `husai_lib.architectures.<name>`, and these are the
# hyperparameters it has beside the shared ones of `SaeParams`, with their defaults.
ARCHITECTURES: dict[str, dict[str, float]] = {
    "topk": {"aux_loss_coefficient": 1.0},
    "standard": {"l1_coefficient": 1.0, "l1_warm_up_fraction": 0.1},
    "batchtopk": {"aux_loss_coefficient": 1.0, "topk_threshold_lr": 0.01},
    "jumprelu": {
        "l0_coefficient": 1.0,
        "l0_warm_up_fraction": 0.1,
        "bandwidth": 0.05,
        "init_threshold": 0.01,
    },
    "topk_transcoder": {"aux_loss_coefficient": 1.0},
}

HOOK_PATTERN = re.compile(
    r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_attn_out|hook_mlp_out|mlp\.hook_in)"
)

DEEPEST = 20  # levels of nesting; parameter files have four
REPOSITORY = Path(__file__).resolve().parent.parent
Positive = Annotated[int, Field(gt=0)]
P = TypeVar("P", bound=BaseModel)


class Section(BaseModel):
    """A part of the parameters: frozen, strict about types, closed to unknown keys and NaN."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelParams(Section):
    """The language model whose activations the SAEs explain."""

    name: str
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

    @field_validator("name")
    @classmethod
    def _source_exists(cls, name: str) -> str:
        source = name.removeprefix("random:")
        if not source:
            raise ValueError("names no model after 'random:'")
        if (path := local_path(source)) and not path.exists():
            raise ValueError(f"no file or folder at {source!r}")
        return name


class TextParams(Section):
    """Which texts serve for what: sae-probes data sets by name; the four roles share none."""

    training: list[str] = Field(min_length=1)
    """Data sets whose texts train the SAEs."""
    held_out: list[str] = Field(min_length=1)
    """Data sets whose texts measure reconstruction, sparsity and dead latents."""
    probing: list[str] = Field(min_length=1)
    """Data sets of the sparse-probing benchmark."""
    ood: list[str] = Field(min_length=1)
    """Tasks of the out-of-distribution control: each must have a shifted set in sae-probes."""
    stories: str = "offline"
    """`offline` for the stories in `husai_lib/data`, a `.jsonl` file, or a hub data set
    (`GulkoA/contrastive-stories-v4`)."""

    @field_validator("training", "held_out", "probing")
    @classmethod
    def _known_data_sets(cls, names: list[str]) -> list[str]:
        return [_one_of(name, data_set_names(), "data set") for name in names]

    @field_validator("ood")
    @classmethod
    def _known_shifted_sets(cls, names: list[str]) -> list[str]:
        return [_one_of(name, shifted_data_set_names(), "data set with a shifted counterpart") for name in names]

    @field_validator("stories")
    @classmethod
    def _stories_exist(cls, name: str) -> str:
        if name.endswith(".jsonl") and not (REPOSITORY / name).is_file():
            raise ValueError(f"no file at {name!r}; write 'offline' for the stories of this repository")
        return name

    @model_validator(mode="after")
    def _roles_share_nothing(self) -> TextParams:
        role_of: dict[str, str] = {}
        for role in ("training", "held_out", "probing", "ood"):
            for name in getattr(self, role):
                if role_of.get(name) == role:
                    raise ValueError(f"data set {name!r} is named twice in {role}; keep one")
                if name in role_of:
                    raise ValueError(
                        f"data set {name!r} serves both {role_of[name]} and {role}; texts of the roles must be disjoint"
                    )
                role_of[name] = role
        return self


class ActivationParams(Section):
    """Which activations are read, and how many."""

    hook_name: str
    """TransformerLens name of the activation, such as `blocks.2.hook_resid_post`."""
    training_rows: Positive
    """Token positions to train on, drawn over all training texts in proportion."""
    held_out_rows: Positive
    """Token positions to measure on."""
    context_tokens: Annotated[int, Field(ge=2, le=8192)] = 128
    """Training and held-out texts are cut to this many tokens."""
    probe_tokens: Annotated[int, Field(ge=2, le=8192)] = 1024
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

    @field_validator("hook_name")
    @classmethod
    def _known_hook(cls, name: str) -> str:
        if not HOOK_PATTERN.fullmatch(name):
            raise ValueError(f"hook {name!r} is unknown; write blocks.<layer>.hook_resid_post or one of its siblings")
        return name

    @property
    def layer(self) -> int:
        """The block the hook is in."""
        match = HOOK_PATTERN.fullmatch(self.hook_name)
        assert match
        return int(match[1])


class SaeParams(Section):
    """What all SAEs of the cycle share; a condition may override any of it."""

    d_sae: Positive
    """Number of latents."""
    k: Positive
    """Target L0: latents active per row."""
    training_samples: Positive
    """Rows shown to one SAE, repeats included."""
    batch_size: Positive = 1024
    """Rows a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Adam's step size, decayed linearly to zero over the last fifth of the steps."""

    @model_validator(mode="after")
    def _k_fits(self) -> SaeParams:
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} exceeds d_sae = {self.d_sae}: more active latents than latents")
        if self.training_samples < self.batch_size:
            raise ValueError(f"training_samples = {self.training_samples} is less than one batch of {self.batch_size}")
        return self


class Condition(SaeParams):
    """Every hyperparameter of an SAE except its seed."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What tables and figures call it; unique in a cycle."""
    architecture: str
    """A name of the registry."""
    hyperparameters: dict[str, Annotated[float, Field(ge=0)]] = {}
    """What the architecture has beside the shared hyperparameters."""

    @model_validator(mode="after")
    def _known_hyperparameters(self) -> Condition:
        own = ARCHITECTURES[_one_of(self.architecture, ARCHITECTURES, "architecture")]
        for key in self.hyperparameters:
            _one_of(key, own, f"hyperparameter of {self.architecture}")
        return self


class BaselineParams(Section):
    """The matched baseline: SAELens' own trainer and recipe, on the cycle's rows, width, k and seeds."""

    architecture: Literal["topk", "batchtopk", "standard"] = "topk"
    """SAELens' training class. TopK has L0 = k by construction, so it is matched without tuning."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """SAELens' default."""
    l1_coefficient: Annotated[float, Field(gt=0)] = 1.0
    """Only for `standard`."""


class ProbingParams(Section):
    """SAEBench sparse probing by the protocol of sae-probes."""

    ks: list[Positive] = Field(default=[1, 2, 5], min_length=1)
    """How many latents a probe may use."""
    choose_k: Literal["validation", "test"] = "validation"
    """Where the best k is chosen; `test` only reproduces old numbers and is labelled as such."""
    seed: int = 42
    """Seed of the splits and fits (sae-probes: 42)."""

    @field_validator("ks")
    @classmethod
    def _ascending(cls, ks: list[int]) -> list[int]:
        if ks != sorted(set(ks)):
            raise ValueError("ks must be distinct and ascending")
        return ks


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


class SelectionParams(Section):
    """How one group is chosen among all that were measured."""

    mode: Literal["lcb", "mean"] = "lcb"
    """Rank groups by the lower confidence bound of their mean, or by the mean."""
    interval: Literal["t", "normal", "bootstrap"] = "t"
    """How a bound over seeds is computed; `normal` only reproduces old decisions."""
    min_seeds: Annotated[int, Field(ge=1)] = 3
    """Groups with fewer seeds are dropped."""
    require_both_external: bool = True
    """Drop members without both external deltas."""
    require_matched_l0: bool = True
    """Drop groups whose L0 is more than 10 % off the target k: their CE-Bench baseline is not matched."""
    min_saebench_delta: float | None = None
    """Floor on a member's SAEBench delta; null for none."""
    min_cebench_delta: float | None = None
    """Floor on a member's CE-Bench delta; null for none."""
    weights: dict[Literal["saebench", "cebench", "train_ev"], Annotated[float, Field(ge=0)]] = {
        "saebench": 0.5,
        "cebench": 0.5,
        "train_ev": 0.1,
    }
    """Weights of the min-max normalised components of the joint score."""
    bootstraps: Annotated[int, Field(ge=0)] = 2000
    """Bootstraps over seeds behind each group's selection probability."""
    seed: int = 0
    """Seed of the bootstraps."""

    @model_validator(mode="after")
    def _bounds_exist(self) -> SelectionParams:
        if self.mode == "lcb" and self.min_seeds < 2 and self.interval != "normal":
            raise ValueError("min_seeds must be at least 2 in lcb mode: one seed has no bound")
        if set(self.weights) != {"saebench", "cebench", "train_ev"} or sum(self.weights.values()) <= 0:
            raise ValueError("weights must name saebench, cebench and train_ev, with a positive sum")
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


class CycleParams(Section):
    """Everything one cycle does: every choice, thresholds included."""

    cycle: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the cycle and of its folder under `evidence/`."""
    summary: str = Field(min_length=1)
    """One sentence on what the cycle is for."""
    seeds: list[Annotated[int, Field(ge=0)]]
    """Seeds of every condition; the first is no special one."""
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

    @field_validator("seeds")
    @classmethod
    def _several_seeds(cls, seeds: list[int]) -> list[int]:
        if len(seeds) < 2:
            raise ValueError("stability across seeds needs at least 2 seeds")
        if len(set(seeds)) != len(seeds):
            raise ValueError("the seeds must differ")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _complete_conditions(cls, data: Any) -> Any:
        return _with_whole_conditions(data)

    @model_validator(mode="after")
    def _consistent(self) -> CycleParams:
        names = [condition.name for condition in self.conditions]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two conditions are called {name!r}; give one another name")
        for condition in self.conditions:
            if condition.architecture == "topk_transcoder":
                raise ValueError(
                    "a transcoder explains another activation; it is a control, switched on by stress.transcoder"
                )
            if condition.training_samples < condition.batch_size:
                raise ValueError(f"condition {condition.name!r} trains on less than one batch")
        if self.selection.min_seeds > len(self.seeds):
            raise ValueError(
                f"selection.min_seeds = {self.selection.min_seeds} but the cycle has {len(self.seeds)} seeds; "
                "no group could be selected"
            )
        return self


def _with_whole_conditions(data: Any) -> Any:
    """Parameters as given, each condition completed from the section `sae` where there is one."""
    if isinstance(data, dict) and isinstance(data.get("conditions"), list) and isinstance(data.get("sae"), dict):
        completed = [_complete_condition(i, c, data["sae"]) for i, c in enumerate(data["conditions"])]
        return data | {"conditions": completed}
    return data


def _complete_condition(index: int, given: Any, shared: dict[str, Any]) -> Any:
    """A condition of the file, completed with the shared values and the architecture's defaults."""
    if not isinstance(given, dict) or "architecture" not in given or "hyperparameters" in given:
        return given
    architecture = _one_of(given["architecture"], ARCHITECTURES, f"conditions.{index}: architecture")
    own = {key: given.get(key, default) for key, default in ARCHITECTURES[architecture].items()}
    rest = {key: value for key, value in given.items() if key not in own}
    known = [*SaeParams.model_fields, "name", "architecture", *own]
    for key in rest:
        _one_of(key, known, f"conditions.{index} ({architecture}): key")
    return {**shared, "name": architecture, **rest, "hyperparameters": own}


def _one_of(value: Any, known: Iterable[str], what: str) -> str:
    known = list(known)
    if value in known:
        return str(value)
    raise ValueError(f"{what} {value!r} is unknown; the nearest is {_nearest(str(value), known)!r}")


def _nearest(value: str, known: Iterable[str]) -> str:
    known = list(known)
    return difflib.get_close_matches(value, known, n=1, cutoff=0)[0]


# ---------------------------------------------------------------------------------------------
# What can be named in parameters
# ---------------------------------------------------------------------------------------------


def local_path(source: str) -> Path | None:
    """Where a model's source lies on this machine, if its name says that it does; else it is a hub name."""
    if source.startswith("package:"):
        return package_path(source)
    if source.endswith(".gguf") or source.startswith((".", "/", "~")):
        return REPOSITORY / Path(source).expanduser()
    return None


def package_path(source: str) -> Path:
    """The file or folder that `package:<package>/<path>` names; ValueError if it is not installed."""
    package, _, inner = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package!r} is not installed; 'make setup' installs the one of the quickstart")
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise ValueError(f"package {package!r} holds no {inner!r}")
    return path


@cache
def probe_data_folder() -> Path:
    """The folder of sae-probes that holds its data sets, found without importing the package."""
    return package_path("package:sae_probes/data")


@cache
def data_set_names() -> tuple[str, ...]:
    """The binary probing data sets that sae-probes ships, such as `100_news_fake`."""
    # The folder also holds continuous and multi-class targets; its index tells them apart.
    packed = (probe_data_folder() / "probing_datasets_MASTER.csv.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        rows = list(csv.DictReader(io.StringIO(stream.read().decode())))
    binary = {Path(row["Dataset save name"]).stem for row in rows if row["Data type"] == "Binary Classification"}
    return tuple(name for name in _names_in("cleaned_data", ".csv.zst") if name in binary)


@cache
def shifted_data_set_names() -> tuple[str, ...]:
    """The data sets for which sae-probes also ships a shifted set."""
    return _names_in("OOD data", "_OOD.csv.zst")


def _names_in(folder: str, ending: str) -> tuple[str, ...]:
    return tuple(sorted(p.name.removesuffix(ending) for p in (probe_data_folder() / folder).glob(f"*{ending}")))


# ---------------------------------------------------------------------------------------------
# Reading a file
# ---------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """YAML without tags, anchors, aliases, deep nesting, duplicate keys or keys that are not identifiers."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ParameterError(f"line {line}: anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise ParameterError(f"line {line}: the tag {event.tag!r} is not allowed; write a plain value")
        if self.depth > DEEPEST:
            raise ParameterError(f"line {line}: nested too deeply; write the parameters flat")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str) or not key.isidentifier() or key_node.tag != "tag:yaml.org,2002:str":
                raise ParameterError(f"line {line}: the key {key!r} is not a plain name; keys are identifiers")
            if key in seen:
                raise ParameterError(f"line {line}: the key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a parameter file holds; ParameterError names the file, the line and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise ParameterError(f"{path} is a folder; name one parameter file, such as params/quickstart.yaml") from None
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; the nearest is {_nearest(str(path), near)}" if near else ""
        raise ParameterError(f"{path} does not exist{hint}") from None
    except UnicodeDecodeError:
        raise ParameterError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """`text` as a mapping, under the strict rules; `source` is what error messages call it."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that allows less
    except ParameterError as error:
        raise ParameterError(f"{source}, {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ParameterError(f"{source}{where}: not valid YAML ({problem}); compare params/quickstart.yaml") from None
    if not isinstance(data, dict):
        raise ParameterError(f"{source}: holds no mapping of keys to values; start from params/quickstart.yaml")
    return data


def override(data: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`data` with each `a.b=value` of the command line applied; the value is read as YAML."""
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(key.isidentifier() for key in keys):
            raise ParameterError(f"--set {assignment}: write key=value, such as --set sae.k=16")
        parsed = parse_yaml(f"value: {text}", f"--set {assignment}")
        if len(parsed) > 1:
            raise ParameterError(f"--set {assignment}: holds several lines; give each key its own --set")
        data = _assign(data, keys, parsed["value"], assignment)
    return data


def _assign(data: dict[str, Any], keys: list[str], value: Any, assignment: str) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return data | {first: value}
    inner = data.get(first, {})
    if not isinstance(inner, dict):
        raise ParameterError(f"--set {assignment}: {first!r} has no keys of its own; set it whole")
    return data | {first: _assign(inner, rest, value, assignment)}


def load_cycle(path: Path, assignments: Iterable[str] = ()) -> CycleParams:
    """The checked parameters of a cycle.

    Raises ParameterError with one sentence that names the file, the key and the nearest valid choice.
    """
    return check(CycleParams, override(read_yaml(path), assignments), str(path))


def check_sections(given: dict[str, Any], source: str) -> Any:
    """The sections of a cycle that one step was given, each checked; attributes are their names.

    Conditions may be written short, as in a parameter file, where `sae` is given too.
    """
    for name in given:
        if name not in CycleParams.model_fields:
            near = _nearest(name, CycleParams.model_fields)
            raise ParameterError(f"{source}: {name} is not a section; did you mean {near!r}?")
    fields: dict[str, Any] = {name: (CycleParams.model_fields[name].annotation, ...) for name in given}
    model = create_model("StepParams", __base__=Section, **fields)
    try:
        return check(model, _with_whole_conditions(given), source)
    except ValueError as error:
        raise ParameterError(f"{source}: {error}") from None


def check(model: type[P], data: dict[str, Any], source: str) -> P:
    """`data` as a `model`; ParameterError describes the first mistake (and counts the others)."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors()
        first = _sentence(model, mistakes[0])
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ParameterError(f"{source}: {first}{more}") from None


def _sentence(model: type[BaseModel], mistake: Any) -> str:
    location = [part for part in mistake["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location if part != "hyperparameters")  # files write them flat
    value = mistake["input"]
    match mistake["type"]:
        case "extra_forbidden":
            known = list(_model_at(model, location[:-1]).model_fields)
            return f"{key} is not a key; did you mean {_nearest(str(location[-1]), known)!r}?"
        case "missing":
            return f"{key} is missing; add it"
        case "value_error":
            return f"{key}: {mistake['ctx']['error']}" if key else str(mistake["ctx"]["error"])
        case "float_type" if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
            mantissa, exponent = re.split("[eE]", value)
            return f"{key} = {value!r} is text in YAML; write {mantissa}.0e{int(exponent):+d}"
        case _:
            return f"{key} = {reprlib.repr(value)}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}"


def _model_at(model: type[BaseModel], location: list[Any]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return model
