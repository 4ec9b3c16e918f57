"""What all tests share: a cache of their own, one thread for torch, and a tiny language model with weights."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from husai_lib.files import REPOSITORY
from husai_lib.params import ModelParams

if TYPE_CHECKING:
    from husai_lib.language_model import LanguageModel


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
    from husai_lib.language_model import open_model

    return open_model(ModelParams(name=str(tiny_folder), prepend_bos=True))
