"""What is read: the language model, the texts and their roles, the activations."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from husai_lib.files import REPOSITORY
from husai_lib.params.catalogue import HUSAI16, data_set_names, local_path, shifted_data_set_names, text_set_names
from husai_lib.params.sections import Count, Positive, Section, distinct, one_of

HOOK = r"blocks\.\d+\.(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_attn_out|hook_mlp_out|mlp\.hook_in)"
Tokens = Annotated[int, Field(ge=2, le=8192)]
TextSet = Annotated[str, AfterValidator(lambda name: one_of(name, text_set_names(), "data set"))]
DataSet = Annotated[str, AfterValidator(lambda name: one_of(name, data_set_names(), "data set"))]
ShiftedSet = Annotated[str, AfterValidator(lambda name: one_of(name, shifted_data_set_names(), "shifted data set"))]


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


class ModelParams(Section):
    """The language model whose activations the SAEs explain."""

    name: Annotated[str, AfterValidator(_model_source)]
    """Hub name, local Hugging Face folder, `.gguf` file, or `package:<package>/<path>` for a file or folder inside an
    installed package; `random:` before any of these re-initialises the weights. A relative path (`./...`) starts at
    the repository."""
    prepend_bos: bool
    """Whether every text starts with the beginning-of-sequence token. It has no default: activations differ."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; activations are stored as float32."""
    seed: int = 0
    """Seed of the weights where `name` starts with `random:`."""


class TextParams(Section):
    """Which texts serve for what: sae-probes data sets by name. No data set serves training and evaluation."""

    training: list[TextSet] = Field(min_length=1)
    """Data sets whose texts train the SAEs, those with more than two classes included."""
    held_out: list[TextSet] = Field(min_length=1)
    """Data sets whose texts measure reconstruction, sparsity and dead latents; the same choice."""
    probing: Annotated[list[DataSet], BeforeValidator(_named_sets), Field(min_length=1)]
    """Data sets of sparse probing: a list, `all` 113 of sae-probes, or `husai16` for the 16 of earlier cycles."""
    ood: list[ShiftedSet] = Field(min_length=1)
    """Tasks of the out-of-distribution control; each must have a shifted set in sae-probes."""
    stories: Annotated[str, AfterValidator(_stories)] = "offline"
    """`offline` for the stories in `husai_lib/data`, a `.jsonl` file, or a hub data set such as
    `GulkoA/contrastive-stories-v4`."""

    def _check(self) -> None:
        for evaluation in (self.probing, self.ood):  # a task may serve both
            distinct([*self.training, *self.held_out, *evaluation], "data set")


class ActivationParams(Section):
    """Which activations are read, and how many."""

    hook_name: Annotated[str, Field(pattern=rf"^{HOOK}(\+{HOOK})*$"), AfterValidator(_ascending)]
    """TransformerLens name of the activation, such as `blocks.2.hook_resid_post`. Names of several layers joined by
    `+` give rows that hold their activations side by side."""
    training_rows: Positive
    """Number of token positions to train on, drawn over all training texts in proportion."""
    held_out_rows: Positive
    """Number of token positions to measure on."""
    validation_rows: Count = 0
    """Number of further held-out positions, by which checkpoints are chosen; 0 where there is nothing to choose. With
    them, the stories that follow those of CE-Bench are read too."""
    context_tokens: Tokens = 128
    """Training and held-out texts are cut to this many tokens."""
    probe_tokens: Tokens = 1024
    """Prompts of the probing data sets are cut to this many of their last tokens (sae-probes: 1024)."""
    skip_positions: Annotated[int, Field(ge=0, le=16)] = 1
    """Number of positions left out at the start of every text: BOS is an attention sink with an outlier norm."""
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = None
    """Rows whose norm exceeds this multiple of the training rows' median norm are left out, as attention sinks at
    delimiters would dominate explained variance; null keeps all."""
    batch_tokens: Positive = 4096
    """Padded tokens in one forward pass."""
    shard_rows: Positive = 2**20
    """Banks of more training or held-out positions are divided into shards of about this many, each kept by itself."""
    seed: int = 0
    """Seed of the draw of texts."""

    @property
    def layer(self) -> int:
        """The block that the hook is in; the last one of a joined hook."""
        return int(self.hook_name.split("+")[-1].split(".")[1])
