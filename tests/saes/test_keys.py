"""Which edit of the library changes the keys of which results: the code that computes them, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import TopKSAE
from small_saes import bank

from husai_lib.activations.texts import ProbingSet
from husai_lib.evidence import cache
from husai_lib.evidence.cache import cached, code_hash, key_of
from husai_lib.files import REPOSITORY
from husai_lib.measures.ceilings import ceiling_rows
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.evaluation import measure
from husai_lib.measures.probing import ProbeTask, llm_scores, sae_scores
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes import training
from husai_lib.saes.architectures import new_sae
from husai_lib.saes.architectures.routed_topk import RoutedTopKSAE
from husai_lib.saes.trained import Member, TrainedSae

Change = Callable[[str, str], str]
Edited = Callable[[Change], set[str]]

OTHERS = {
    "banks": "activations.extraction",
    "converted models": "activations.language_model",
    "baselines": "saes.baseline",
    "probes of the activation": "measures.probing",
}
"""Results whose keys hold no SAE, and the modules that compute them."""
BANKS = {"banks"}
SAES = {f"SAE {name}" for name in ARCHITECTURES}
PROBES = {f"probes of {name}" for name in ARCHITECTURES}
STORIES = {f"story scores of {name}" for name in ARCHITECTURES}
OURS = ("routed_topk", "route_sae", "layerwise", "topk_transcoder")
"""Architectures whose inference class is one of this library."""
OF_OURS = {f"{what} of {name}" for what in ("probes", "story scores") for name in OURS}


def untrained(architecture: str) -> TrainedSae:
    """An untrained SAE of an architecture, exported to the cache."""
    condition = Condition(architecture=architecture, d_sae=32, k=4, training_samples=1024)
    generator = torch.Generator().manual_seed(0)
    width = 16 if architecture in {"layerwise", "route_sae"} else 8
    sae = new_sae(condition, width, width, generator).export(1.0, 1.0, {})
    return TrainedSae(Member(condition, 0), cached("saes", "husai_lib.files", {"name": architecture}, sae.save_model))


def again(sae: TrainedSae) -> TrainedSae:
    """The same SAE, as another process opens it."""
    return TrainedSae(sae.member, sae.entry)


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`edit(change)` changes the source of modules, as far as keys are concerned: `change(module, source)`."""
    real = cache.source_of

    def changed(module: str, change: Change) -> str | None:
        source = real(module)
        return None if source is None else change(module.removeprefix("husai_lib."), source)

    def edited(change: Change) -> None:
        monkeypatch.setattr(cache, "source_of", lambda module: changed(module, change))
        code_hash.cache_clear()

    yield edited
    code_hash.cache_clear()


@pytest.fixture
def edited(edit: Callable[..., None], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Edited:
    """`edited(change)` changes the source of modules and returns the results whose keys change."""
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")
    saes = {name: untrained(name) for name in ARCHITECTURES}
    rows = SimpleNamespace(hook_name="hook", sha256="rows")
    data: Any = SimpleNamespace(rows=rows, target=rows)

    def keys() -> dict[str, str]:
        found = {what: key_of(f"husai_lib.{module}", {}) for what, module in OTHERS.items()}
        for name, sae in saes.items():
            found[f"SAE {name}"] = key_of(training.__name__, training._inputs(sae.member, data, {}))
            found[f"probes of {name}"] = key_of("husai_lib.measures.probing", again(sae).content)
            found[f"story scores of {name}"] = key_of("husai_lib.measures.contrastive", again(sae).content)
        return found

    def changed(change: Change) -> set[str]:
        before = keys()
        edit(change)
        return {what for what, key in keys().items() if key != before[what]}

    return changed


def replaced(module: str, old: str, new: str) -> Change:
    """An edit of one module; the code that it replaces must be there once."""

    def change(name: str, source: str) -> str:
        assert name != module or source.count(old) == 1, f"{module} has no {old!r}, or several"
        return source.replace(old, new) if name == module else source

    return change


WITHOUT_ROUTER = replaced(
    "saes.architectures.routed_topk", "self.activation_fn(allowed) * own", "self.activation_fn(pre)"
)


def test_no_key_changes_with_docstrings_comments_and_layout(edited: Edited) -> None:
    def change(_: str, source: str) -> str:
        source = re.sub(r'^( *)"""(?=.)', r'\1"""Another docstring. ', source, flags=re.MULTILINE)
        return re.sub(r"(:|\n\n)$", r"\1  # a comment", source, flags=re.MULTILINE)

    assert not edited(change)


def test_no_key_changes_with_code_that_only_describes_stores_or_judges_results(edited: Edited) -> None:
    def change(module: str, source: str) -> str:
        return source if module.startswith(("activations", "saes", "measures", "randomness")) else f"{source}\nx = 1\n"

    assert not edited(change)
    names = [
        ".".join(p.relative_to(REPOSITORY).with_suffix("").parts) for p in (REPOSITORY / "husai_lib").rglob("*.py")
    ]
    rooms = {name.split(".")[1] for name in names if "x = 1" in str(cache.source_of(name))}
    assert {"report", "decisions", "cycle", "evidence", "params", "files", "errors"} <= rooms


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        # a loss: those that are trained with it, and measures of those whose inference class is in the same module
        ("saes.architectures.gated", "squared(of_gate)", "2 * squared(of_gate)", {"SAE gated"}),
        ("saes.architectures.batchtopk", "10 / state.steps", "20 / state.steps",
         {"SAE batchtopk", "SAE matryoshka_batchtopk"}),
        ("saes.architectures.routed_topk", "1 / self.num_experts", "2 / self.num_experts",
         {"SAE routed_topk", "probes of routed_topk", "story scores of routed_topk"}),
        ("saes.architectures.hierarchical_topk", "ROWS_TOGETHER = 512", "ROWS_TOGETHER = 4", {"SAE hierarchical_topk"}),
        # the step, the order of the data
        ("saes.stack", "GRADIENT_NORM = 1.0", "GRADIENT_NORM = 2.0", SAES),
        # the consistency objective, which any SAE may be trained with
        ("saes.objective", "cosines.sign()", "cosines", SAES),
        ("saes.assignment", "BIDS = 100", "BIDS = 50", SAES),
        ("saes.data", "permutation(n_rows)", "permutation(n_rows - 1)", SAES | {"baselines"}),
        ("saes.baseline", "lr_end=condition.learning_rate", "lr_end=0.0", {"baselines"}),
        # a measure
        ("measures.probing", "TRAIN_ROWS, TEST_ROWS_AT_LEAST, ROWS_AT_MOST = 1024", "TRAIN_ROWS, TEST_ROWS_AT_LEAST, "
         "ROWS_AT_MOST = 512", PROBES | {"probes of the activation"}),
        ("measures.contrastive", "(count - 1)", "count", STORIES),
        ("measures.evaluation", "1 - error / variance", "error / variance", set()),
        # rows: their extraction, and how a bank hands them out
        ("activations.extraction", "norms <= limit", "norms < limit", BANKS),
        ("activations.banks", "**0.5", "** 0.25", SAES | PROBES | STORIES | set(OTHERS) - {"converted models"}),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " " not in value else "",
)  # fmt: skip
def test_an_edit_of_code_changes_the_keys_of_what_it_computes_and_no_others(
    module: str, old: str, new: str, expected: set[str], edited: Edited
) -> None:
    assert edited(replaced(module, old, new)) == expected


def test_inference_code_of_this_library_is_part_of_the_keys_of_measures(edited: Edited) -> None:
    found = edited(WITHOUT_ROUTER)
    assert found == {"SAE routed_topk", "probes of routed_topk", "story scores of routed_topk"}


def test_what_all_architectures_share_is_part_of_all_that_is_trained_and_of_our_own_inference_classes(
    edited: Edited,
) -> None:
    assert edited(replaced("saes.architectures.base", "self.d_out // 2", "self.d_out // 4")) == SAES | OF_OURS


def plain_top_k(sae: RoutedTopKSAE, x: torch.Tensor) -> torch.Tensor:
    """The published mistake: a routed SAE that is evaluated as a plain TopK one."""
    latents: torch.Tensor = TopKSAE.encode(sae, x)
    return latents


def a_task() -> ProbeTask:
    labels = np.arange(400) % 2
    rows = np.random.default_rng(1).normal(size=(400, 8)) + 0.7 * labels[:, None]
    data = ProbingSet("made_up", tuple(f"prompt {i}" for i in range(400)), labels, ("no", "yes"))
    return ProbeTask(data, bank(rows), kept=np.arange(400))


MEASURES: dict[str, Callable[[TrainedSae], Any]] = {
    "reconstruction": lambda sae: measure(sae.sae, bank(np.random.default_rng(2).normal(size=(64, 8)))),
    "probes": lambda sae: sae_scores([sae], [a_task()], ProbingParams()),
    "ceilings": lambda sae: ceiling_rows([sae], [a_task()], llm_scores([a_task()], ProbingParams()), ProbingParams()),
    "stories": lambda sae: contrastive_scores(
        [sae], bank(np.random.default_rng(0).normal(size=(64, 8)), [0, 16, 32, 48, 64]), ContrastiveParams()
    ),
}
"""What measures an SAE, on data that do not change."""


@pytest.mark.parametrize("name", MEASURES)
def test_no_measure_keeps_a_stale_number_when_the_router_is_dropped_at_inference(
    name: str, edit: Callable[..., None], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = untrained("routed_topk")
    with_router = MEASURES[name](again(sae))
    edit(WITHOUT_ROUTER)
    monkeypatch.setattr(RoutedTopKSAE, "encode", plain_top_k)
    without = MEASURES[name](again(sae))
    assert without != with_router
    monkeypatch.setenv("HUSAI_CACHE", str(fresh_cache.parent / "another"))
    assert MEASURES[name](again(untrained("routed_topk"))) == without  # what an empty cache gives


def test_a_score_of_an_sae_is_computed_again_when_its_inference_code_changes(
    edit: Callable[..., None], fresh_cache: Path
) -> None:
    stories = bank(np.random.default_rng(0).normal(size=(8, 8)), [0, 2, 4, 6, 8])
    params = ContrastiveParams()
    saes = {name: untrained(name) for name in ("routed_topk", "topk")}

    def entries() -> int:
        contrastive_scores([again(sae) for sae in saes.values()], stories, params)
        return len(list((fresh_cache / "contrastive").iterdir()))

    assert entries() == entries() == 2
    edit(replaced("saes.architectures.routed_topk", "(allowed) * own", "(allowed)"))
    assert entries() == 3
