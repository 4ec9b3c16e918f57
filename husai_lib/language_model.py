"""Language models: hub name, local folder or GGUF, real or re-initialised, as a TransformerLens model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from husai_lib.cache import cached
from husai_lib.errors import ModelError
from husai_lib.files import sha256_file
from husai_lib.params import ModelParams, package_path

Tokens = list[int]


@dataclass(frozen=True)
class LanguageModel:
    """A model that is loaded when it is first asked for something; its identity is known before."""

    params: ModelParams
    device: str
    source: str
    """Folder, GGUF file or hub name, without `random:`."""
    identity: dict[str, Any]
    """What determines its weights and tokens: content hashes, or the hub's commit."""

    @cached_property
    def bridge(self) -> Any:
        """The TransformerLens `TransformerBridge` in evaluation mode."""
        from transformer_lens.model_bridge import TransformerBridge

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge warns about hub access it does not need here
            return TransformerBridge.boot_transformers(
                self._boot_name, hf_model=self._hf_model(), tokenizer=self.tokenizer, device=self.device
            ).eval()

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer; it adds no special token by itself (see `tokenize`)."""
        from transformers import AutoTokenizer

        return _loaded(AutoTokenizer.from_pretrained, self._folder)

    @property
    def _folder(self) -> str:
        is_gguf = self.source.endswith(".gguf")
        return str(_converted(Path(self.source))) if is_gguf else self.source

    @property
    def _boot_name(self) -> str:
        return self._folder

    def _hf_model(self) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        dtype = getattr(torch, self.params.dtype)
        if not self.params.name.startswith("random:"):
            return _loaded(AutoModelForCausalLM.from_pretrained, self._folder, dtype=dtype)
        config = _loaded(AutoConfig.from_pretrained, self._folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.params.seed)
            return AutoModelForCausalLM.from_config(config).to(dtype)

    def tokenize(self, texts: list[str], max_tokens: int, keep: str = "start") -> list[Tokens]:
        """Token ids of each text, at most `max_tokens` of them, the BOS token included where asked for.

        `keep` says which end survives a cut: `start`, or `end` as sae-probes has it (BOS stays first
        only with `start`; with `end` a cut text loses it, as in sae-probes).
        Raises ModelError if the model has no BOS token but `prepend_bos` asks for one.
        """
        tokenizer = self.tokenizer
        ids: list[Tokens] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if self.params.prepend_bos:
            bos = tokenizer.bos_token_id
            if bos is None:
                raise ModelError(f"{self.params.name} has no BOS token; set model.prepend_bos: false")
            ids = [[bos, *text] for text in ids]
        return [text[:max_tokens] if keep == "start" else text[-max_tokens:] for text in ids]


def open_model(params: ModelParams, device: str = "cpu") -> LanguageModel:
    """The model `params` names, not yet loaded.

    Raises ModelError if there is none: the sentence names it and what to do.
    """
    name = params.name.removeprefix("random:")
    source = str(package_path(name)) if name.startswith("package:") else name
    path = Path(source).expanduser()
    if path.exists():
        source = str(path)
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in {".json", ".safetensors", ".txt", ".model"})
        content: dict[str, Any] = {"files": {p.name: sha256_file(p) for p in files}}
        if not files:
            raise ModelError(f"{source} holds no model: neither config.json nor weights")
    else:
        source, content = _hub_source(source)
    is_random = params.name.startswith("random:")
    identity = content | {"dtype": params.dtype, "prepend_bos": params.prepend_bos, "random_seed": params.seed if is_random else None}
    return LanguageModel(params, device, source, identity)


def _hub_source(name: str) -> tuple[str, dict[str, Any]]:
    """The hub repository TransformerLens knows under `name`, and the commit it stands at."""
    from transformer_lens.loading_from_pretrained import get_official_model_name
    from transformers import AutoConfig

    try:
        repository = get_official_model_name(name)
    except ValueError:
        repository = name
    commit = getattr(_loaded(AutoConfig.from_pretrained, repository), "_commit_hash", None)
    return repository, {"hub": repository, "commit": commit}


def _loaded(load: Any, source: str, **options: Any) -> Any:
    """`load(source)`, with any way that can fail turned into one sentence."""
    try:
        return load(source, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"language model {source!r} cannot be loaded: {reason[:200]}; name a local folder, a .gguf file, or a hub model while online"
        ) from error


def _converted(gguf: Path) -> Path:
    """A Hugging Face folder with the content of a GGUF file, made once: parsing GGUF takes 10 s a time."""

    def make(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"gguf_file": gguf.name}
        model = _loaded(AutoModelForCausalLM.from_pretrained, str(gguf.parent), dtype=torch.float32, **options)
        model.config.quantization_config = None
        if hasattr(model, "hf_quantizer"):
            model.hf_quantizer = None
        model.save_pretrained(folder)
        _loaded(AutoTokenizer.from_pretrained, str(gguf.parent), **options).save_pretrained(folder)

    return cached("models", __name__, {"gguf": sha256_file(gguf)}, make).path
