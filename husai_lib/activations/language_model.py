"""Language models as TransformerLens models: from the hub, a local folder or a GGUF file, trained or re-initialised."""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformer_lens.loading_from_pretrained import get_official_model_name
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from husai_lib.errors import ModelError
from husai_lib.evidence.cache import cached
from husai_lib.files import sha256_file
from husai_lib.params.catalogue import local_path
from husai_lib.params.inputs import ModelParams

Tokens = list[int]
MODEL_FILES = {".json", ".safetensors", ".txt", ".model"}


@dataclass(frozen=True)
class LanguageModel:
    """A model that is loaded on first use; its identity is known before."""

    params: ModelParams
    device: str
    source: str
    """Folder, GGUF file or hub name, without `random:`."""
    identity: dict[str, Any]
    """All that determines its weights and tokens: content hashes, or the commit on the hub."""

    @cached_property
    def bridge(self) -> Any:
        """The TransformerLens `TransformerBridge` in evaluation mode."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge warns about hub access it does not need here
            return TransformerBridge.boot_transformers(
                self._folder, hf_model=self._hf_model(), tokenizer=self.tokenizer, device=self.device
            ).eval()

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer; `tokenize` adds the BOS token."""
        tokenizer = _loaded(AutoTokenizer.from_pretrained, self._folder)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers returns if there are no files
            raise ModelError(f"language model {self.source!r} holds no tokenizer; add its tokenizer files")
        return tokenizer

    @property
    def _folder(self) -> str:
        is_gguf = self.source.endswith(".gguf")
        return str(_converted(Path(self.source))) if is_gguf else self.source

    def _hf_model(self) -> Any:
        dtype = getattr(torch, self.params.dtype)
        if not self.params.name.startswith("random:"):
            # pickles are never loaded, and are not part of the identity
            return _weights(self._folder, dtype=dtype, use_safetensors=True)
        config = _loaded(AutoConfig.from_pretrained, self._folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.params.seed)
            return AutoModelForCausalLM.from_config(config).to(dtype)

    def tokenize(self, texts: list[str], max_tokens: int, keep: str = "start") -> list[Tokens]:
        """At most `max_tokens` token ids of each text, the BOS token first if `prepend_bos` is set.

        `keep` is the end of a long text that is kept: `start`, or `end` as in sae-probes. Raises ModelError if
        `prepend_bos` is set but the model has no BOS token.
        """
        tokenizer = self.tokenizer
        first = [tokenizer.bos_token_id] if self.params.prepend_bos else []
        if None in first:
            raise ModelError(f"{self.params.name} has no BOS token; set model.prepend_bos: false")
        room = max_tokens - len(first)
        ids: list[Tokens] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [first + (text[:room] if keep == "start" else text[-room:]) for text in ids]


def open_model(params: ModelParams, device: str = "cpu") -> LanguageModel:
    """The model that `params` names, not loaded yet. Raises ModelError if there is none."""
    source = params.name.removeprefix("random:")
    if path := local_path(source):
        files = [path] if path.is_file() else [p for p in sorted(path.glob("*")) if p.suffix in MODEL_FILES]
        if not files:
            raise ModelError(f"{path} holds no model, neither config.json nor weights; name another folder")
        source = str(path)
        content: dict[str, Any] = {"files": {p.name: sha256_file(p) for p in files}}
    else:
        with suppress(ValueError):  # it is not one of the names that TransformerLens has for models
            source = get_official_model_name(source)
        config = _loaded(AutoConfig.from_pretrained, source)
        content = {"hub": source, "commit": getattr(config, "_commit_hash", None)}
    seed = params.seed if params.name.startswith("random:") else None
    about = {"dtype": params.dtype, "prepend_bos": params.prepend_bos, "random_seed": seed}
    return LanguageModel(params, device, source, content | about)


def _loaded(load: Any, source: str, **options: Any) -> Any:
    """`load(source)` without code of the source; any failure raises a ModelError with one sentence."""
    try:
        return load(source, trust_remote_code=False, **options)  # unsaid, transformers would ask a user at a terminal
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "name a local folder, a .gguf file, or a hub model while online"
        raise ModelError(f"language model {source!r} cannot be loaded: {reason[:200]}; {remedy}") from error


def _weights(source: str, **options: Any) -> Any:
    """The model with all its weights; transformers would only warn about missing ones and leave them random."""
    model, report = _loaded(AutoModelForCausalLM.from_pretrained, source, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"language model {source!r} lacks weights ({missing[0]}, ...); get the whole checkpoint again")
    return model


def _converted(gguf: Path) -> Path:
    """A Hugging Face folder with the content of a GGUF file, cached because parsing GGUF takes 10 s."""

    def make(folder: Path) -> None:
        options = {"gguf_file": gguf.name}
        model = _weights(str(gguf.parent), dtype=torch.float32, **options)
        model.config.quantization_config = None
        if hasattr(model, "hf_quantizer"):
            model.hf_quantizer = None
        model.save_pretrained(folder)
        _loaded(AutoTokenizer.from_pretrained, str(gguf.parent), **options).save_pretrained(folder)

    return cached("models", __name__, {"gguf": sha256_file(gguf)}, make).path
