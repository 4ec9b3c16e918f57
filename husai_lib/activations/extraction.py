"""Extraction of banks: a language model's activations over texts, and Gaussian rows with the same moments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from husai_lib.activations.banks import CHUNK, Bank, mapped
from husai_lib.activations.language_model import LanguageModel, Tokens
from husai_lib.activations.texts import ProbingSet, Text
from husai_lib.errors import DataError, ModelError
from husai_lib.evidence.cache import cached
from husai_lib.files import canonical_json, sha256_text, write_json
from husai_lib.params.inputs import ActivationParams
from husai_lib.randomness import torch_generator
from husai_lib.tasks import Progress


def text_bank(
    model: LanguageModel,
    texts: list[Text],
    params: ActivationParams,
    hooks: list[str],
    rows: int | None = None,
    *,
    norm_limit: float | None = None,
    progress: Progress | None = None,
) -> Bank:
    """Activations at all positions of `texts`, in order, until `rows` positions are reached.

    The first `skip_positions` of each text are left out, and so are rows whose norm at the first hook exceeds
    `norm_limit` (by default `max_norm_ratio` times the median norm of these rows). Raises DataError if the texts have
    fewer positions than `rows`, or no row is left.
    """
    inputs = _inputs(model, texts, params, hooks) | {
        "kind": "text",
        "rows": rows,
        "norm_limit": norm_limit,
        **params.model_dump(include={"context_tokens", "skip_positions", "max_norm_ratio"}),
    }

    def make(folder: Path) -> None:
        kept, tokens = _tokens_until(model, texts, params, rows)
        spans = [(params.skip_positions, len(text)) for text in tokens]
        if not any(start < end for start, end in spans):
            raise DataError("no text has a token left after activations.skip_positions; use longer texts")
        _extract(model, tokens, spans, hooks, params.batch_tokens, folder=folder, progress=progress)
        limit = _drop_outliers(folder, hooks, norm_limit, params.max_norm_ratio)
        counts = np.diff(np.load(folder / "offsets.npy"))
        if not counts.any():
            raise DataError(
                "activations.max_norm_ratio leaves no row of these texts; use other texts or a higher ratio"
            )
        _write_meta(folder, kept, tokens, counts, limit)

    return Bank(cached("banks", __name__, inputs, make), hooks[0])


def last_token_bank(model: LanguageModel, texts: list[Text], params: ActivationParams, hook_name: str) -> Bank:
    """The activation at the last token of each text, one row a text, as in sae-probes.

    Raises DataError for a text without tokens.
    """
    inputs = _inputs(model, texts, params, [hook_name]) | {"kind": "last token", "probe_tokens": params.probe_tokens}

    def make(folder: Path) -> None:
        tokens = model.tokenize([text.text for text in texts], params.probe_tokens, keep="end")
        for text, ids in zip(texts, tokens, strict=True):
            if not ids:
                raise DataError(f"data set {text.data_set!r} has a text without tokens; set model.prepend_bos: true")
        spans = [(len(ids) - 1, len(ids)) for ids in tokens]
        _extract(model, tokens, spans, [hook_name], params.batch_tokens, folder=folder)
        _write_meta(folder, texts, tokens, np.ones(len(texts), int))

    return Bank(cached("banks", __name__, inputs, make), hook_name)


def prompt_banks(
    model: LanguageModel, sets: Sequence[ProbingSet], params: ActivationParams, progress: Progress | None = None
) -> list[Bank]:
    """A bank of last-token activations for each probing data set."""
    banks = []
    for done, data in enumerate(sets):
        texts = [Text(data.name, prompt) for prompt in data.prompts]
        banks.append(last_token_bank(model, texts, params, params.hook_name))
        if progress:
            progress(done + 1, len(sets), "data sets read")
    return banks


def gaussian_bank(bank: Bank, seed: int = 0) -> Bank:
    """Gaussian rows with the mean and covariance of `bank`: a null to train on."""
    inputs = {"kind": "gaussian", "bank": bank.sha256, "hook": bank.hook_name, "seed": seed}

    def make(folder: Path) -> None:
        n, d_in = bank.rows.shape
        mean, outer = bank.mean(), torch.zeros(d_in, d_in, dtype=torch.float64)
        for chunk in bank.chunks():
            rows = chunk.double()
            outer += rows.T @ rows
        values, vectors = torch.linalg.eigh(outer / n - torch.outer(mean, mean))
        root = (vectors * values.clamp(min=0).sqrt()).float()
        generator = torch_generator(seed, "gaussian activations")
        output = _new_rows(folder / f"{bank.hook_name}.npy", (n, d_in))
        for start in range(0, n, CHUNK):
            noise = torch.randn(min(CHUNK, n - start), d_in, generator=generator)
            output[start : start + len(noise)] = (noise @ root.T + mean.float()).numpy()
        output.flush()
        np.save(folder / "offsets.npy", np.array([0, n]))
        _write_meta(folder, [], [], [])

    return Bank(cached("banks", __name__, inputs, make), bank.hook_name)


def _inputs(model: LanguageModel, texts: list[Text], params: ActivationParams, hooks: list[str]) -> dict[str, Any]:
    return {
        "model": model.identity,
        "texts": sha256_text(canonical_json([[text.data_set, text.text] for text in texts])),
        "hooks": hooks,
        "batch_tokens": params.batch_tokens,
        "device": model.device,
    }


def _tokens_until(
    model: LanguageModel, texts: list[Text], params: ActivationParams, rows: int | None
) -> tuple[list[Text], list[Tokens]]:
    """The shortest prefix of `texts` with `rows` positions to keep, and its tokens; the last text is cut to fit."""
    tokens: list[Tokens] = []
    found, skip = 0, params.skip_positions
    for start in range(0, len(texts), 256):
        batch = [text.text for text in texts[start : start + 256]]
        for ids in model.tokenize(batch, params.context_tokens):
            tokens.append(ids if rows is None else ids[: skip + rows - found])
            found += max(0, len(tokens[-1]) - skip)
            if found == rows:
                return texts[: len(tokens)], tokens
    if rows is not None:
        remedy = "name more data sets or ask for fewer rows"
        raise DataError(f"the texts have {found} token positions but {rows} were requested; {remedy}")
    return texts, tokens


def _extract(
    model: LanguageModel,
    tokens: list[Tokens],
    spans: list[tuple[int, int]],
    hooks: list[str],
    batch_tokens: int,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Write `<hook>.npy` with the positions `spans[i]` of every text i, in the order of the texts.

    A joined hook has the activations of its parts side by side. Batches hold texts of similar length, so that there is
    little padding, and only as many blocks of the model run as needed.
    """
    lengths = np.array([max(0, end - start) for start, end in spans])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    points = {hook: [_capture_point(part) for part in hook.split("+")] for hook in hooks}
    names = [name for parts in points.values() for name, _ in parts]
    stop = max(layer for parts in points.values() for _, layer in parts)
    outputs: dict[str, np.memmap] = {}
    done = 0
    for batch in _length_sorted([len(ids) for ids in tokens], batch_tokens):
        captured = _forward(model, [tokens[i] for i in batch], names, stop)
        for hook, parts in points.items():
            values = torch.cat([captured[name].float() for name, _ in parts], dim=-1).cpu().numpy()
            if not np.isfinite(values).all():
                raise DataError(f"activation {hook} has a value that is not finite; set model.dtype: float32")
            if hook not in outputs:
                outputs[hook] = _new_rows(folder / f"{hook}.npy", (int(offsets[-1]), values.shape[-1]))
            for row, i in enumerate(batch):
                outputs[hook][offsets[i] : offsets[i + 1]] = values[row, spans[i][0] : spans[i][1]]
        done += len(batch)
        if progress:
            progress(done, len(tokens), "texts")
    for output in outputs.values():
        output.flush()
    np.save(folder / "offsets.npy", offsets)


def _drop_outliers(folder: Path, hooks: list[str], limit: float | None, ratio: float | None) -> float | None:
    """Rewrite a bank without rows above the limit, by default `ratio` times the median norm; returns the limit."""
    if limit is None and ratio is None:
        return None
    first = mapped(folder, hooks[0])
    norms = np.concatenate([np.linalg.norm(first[i : i + CHUNK], axis=1) for i in range(0, len(first), CHUNK)])
    limit = limit or float(np.median(norms) * ratio)
    keep = norms <= limit
    for hook in hooks:
        source = mapped(folder, hook)
        target = _new_rows(folder / "kept.npy", (int(keep.sum()), source.shape[1]))
        written = 0
        for start in range(0, len(source), CHUNK):
            chunk = source[start : start + CHUNK][keep[start : start + CHUNK]]
            target[written : written + len(chunk)] = chunk
            written += len(chunk)
        target.flush()
        (folder / "kept.npy").replace(folder / f"{hook}.npy")
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(keep)])[np.load(folder / "offsets.npy")])
    return limit


def _new_rows(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A new float32 array on disk, its space allocated at once: a full disk would otherwise kill the process later."""
    rows: np.memmap = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return rows


def _write_meta(
    folder: Path, texts: list[Text], tokens: list[Tokens], rows: Sequence[int] | np.ndarray, limit: float | None = None
) -> None:
    """Write the norm limit, and the counts of texts, tokens and rows by data set."""
    counts = {"data_set": [text.data_set for text in texts], "texts": 1, "tokens": [*map(len, tokens)], "rows": rows}
    sources = pd.DataFrame(counts).groupby("data_set", as_index=False).sum().to_dict("records")
    write_json(folder / "meta.json", {"norm_limit": limit, "sources": sources})


def _capture_point(hook: str) -> tuple[str, int]:
    """The earliest point at which TransformerLens can read `hook`, and how many blocks must run for it.

    A block's input is the output of the block before, which needs one block less.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    assert match, hook
    layer, name = int(match[1]), match[2]
    if name == "hook_resid_pre" and layer > 0:
        return f"blocks.{layer - 1}.hook_resid_post", layer
    return hook, layer + 1


def _length_sorted(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts, sorted by length, in batches of at most `batch_tokens` padded tokens (or one text)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _forward(model: LanguageModel, tokens: list[Tokens], names: list[str], stop: int) -> dict[str, torch.Tensor]:
    """Activations `[texts, positions, d]` by name. Padding is on the right, where no causal position attends to it."""
    width = max(1, *map(len, tokens))
    padded = torch.zeros(len(tokens), width, dtype=torch.long)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    name, cfg = model.params.name, model.bridge.cfg
    if width > cfg.n_ctx:
        raise ModelError(f"{name} reads {cfg.n_ctx} tokens at most; lower activations.context_tokens and probe_tokens")
    _, captured = model.bridge.run_with_cache(padded.to(model.device), names_filter=names, stop_at_layer=stop)
    if absent := [point for point in names if point not in captured]:
        layers = f"its {cfg.n_layers} layers are numbered from 0"
        raise ModelError(f"{name} has no {absent[0]} ({layers}); choose another activations.hook_name")
    return {point: captured[point] for point in names}
