"""Activations of a language model over texts, written to banks; Gaussian rows beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from husai_lib.activations.banks import CHUNK, Bank, mapped, new_rows
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
    """Activations at all positions of `texts` from the start, until `rows` positions are reached.

    The first `skip_positions` of each text are left out, as are rows whose norm at the first hook
    exceeds `norm_limit` (by default `max_norm_ratio` times the median of these very rows).
    Raises DataError if the texts hold fewer positions than asked for, or no row is left.
    """
    inputs = _inputs(model, texts, params, hooks) | {
        "kind": "text",
        "rows": rows,
        "context_tokens": params.context_tokens,
        "norm_limit": norm_limit,
        "skip_positions": params.skip_positions,
        "max_norm_ratio": params.max_norm_ratio,
    }

    def make(folder: Path) -> None:
        kept, tokens = _tokens_until(model, texts, params, rows)
        spans = [(params.skip_positions, len(text)) for text in tokens]
        if not any(start < end for start, end in spans):
            raise DataError("no text has a token left after activations.skip_positions; give longer texts")
        _extract(model, tokens, spans, hooks, params.batch_tokens, folder=folder, progress=progress)
        limit = norm_limit or _norm_limit(mapped(folder, hooks[0]), params.max_norm_ratio)
        counts = _drop_outliers(folder, hooks, limit)
        if not counts.any():
            raise DataError("activations.max_norm_ratio leaves no row of these texts; give others or a higher ratio")
        write_json(folder / "meta.json", {"norm_limit": limit, "sources": _sources(kept, tokens, counts)})

    return Bank(cached("banks", __name__, inputs, make), hooks[0])


def last_token_bank(
    model: LanguageModel, texts: list[Text], params: ActivationParams, hook_name: str, progress: Progress | None = None
) -> Bank:
    """The activation at the last token of each text, one row a text in their order (sae-probes).

    Raises DataError for a text without tokens.
    """
    inputs = _inputs(model, texts, params, [hook_name]) | {"kind": "last token", "probe_tokens": params.probe_tokens}

    def make(folder: Path) -> None:
        tokens = model.tokenize([text.text for text in texts], params.probe_tokens, keep="end")
        for text, ids in zip(texts, tokens, strict=True):
            if not ids:
                raise DataError(f"data set {text.data_set!r} has a text without tokens; set model.prepend_bos: true")
        spans = [(len(ids) - 1, len(ids)) for ids in tokens]
        _extract(model, tokens, spans, [hook_name], params.batch_tokens, folder=folder, progress=progress)
        sources = _sources(texts, tokens, np.ones(len(texts), int))
        write_json(folder / "meta.json", {"norm_limit": None, "sources": sources})

    return Bank(cached("banks", __name__, inputs, make), hook_name)


def prompt_banks(
    model: LanguageModel, sets: Sequence[ProbingSet], params: ActivationParams, progress: Progress | None = None
) -> list[Bank]:
    """A bank of last-token activations for each probing data set, in their order."""
    banks = []
    for done, data in enumerate(sets):
        texts = [Text(data.name, prompt) for prompt in data.prompts]
        banks.append(last_token_bank(model, texts, params, params.hook_name))
        if progress:
            progress(done + 1, len(sets), "data sets read")
    return banks


def gaussian_bank(bank: Bank, seed: int = 0) -> Bank:
    """Gaussian rows with the mean and covariance of `bank` (phase-randomised activations): a null to train on."""
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
        output = new_rows(folder / f"{bank.hook_name}.npy", (n, d_in))
        for start in range(0, n, CHUNK):
            noise = torch.randn(min(CHUNK, n - start), d_in, generator=generator)
            output[start : start + len(noise)] = (noise @ root.T + mean.float()).numpy()
        output.flush()
        np.save(folder / "offsets.npy", np.array([0, n]))
        write_json(folder / "meta.json", {"norm_limit": None, "sources": []})

    return Bank(cached("banks", __name__, inputs, make), bank.hook_name)


def _inputs(model: LanguageModel, texts: list[Text], params: ActivationParams, hooks: list[str]) -> dict[str, Any]:
    content = sha256_text(canonical_json([[text.data_set, text.text] for text in texts]))
    about = {"texts": content, "hooks": hooks, "batch_tokens": params.batch_tokens, "device": model.device}
    return about | {"model": model.identity}


def _tokens_until(
    model: LanguageModel, texts: list[Text], params: ActivationParams, rows: int | None
) -> tuple[list[Text], list[Tokens]]:
    """The shortest prefix of `texts` with `rows` kept positions (its last text cut to fit), tokenised."""
    tokens: list[Tokens] = []
    missing = rows
    for start in range(0, len(texts), 256):
        batch = [text.text for text in texts[start : start + 256]]
        for ids in model.tokenize(batch, params.context_tokens):
            usable = max(0, len(ids) - params.skip_positions)
            if missing is not None and usable >= missing:
                tokens.append(ids[: params.skip_positions + missing])
                return texts[: len(tokens)], tokens
            missing = None if missing is None else missing - usable
            tokens.append(ids)
    if missing:
        found = (rows or 0) - missing
        remedy = "name more data sets or ask for fewer rows"
        raise DataError(f"the texts hold {found} token positions but {rows} were asked for; {remedy}")
    return texts, tokens


def _extract(
    model: LanguageModel,
    tokens: list[Tokens],
    spans: list[tuple[int, int]],
    hooks: list[str],
    batch_tokens: int,
    *,
    folder: Path,
    progress: Progress | None,
) -> None:
    """Write `<hook>.npy` with the positions `spans[i]` of every text i, in the order of the texts.

    A joined hook has the activations of its parts side by side. Texts run sorted by length, so that a batch holds
    little padding, and only as many blocks as needed.
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
                shape = (int(offsets[-1]), values.shape[-1])
                outputs[hook] = new_rows(folder / f"{hook}.npy", shape)
            for row, i in enumerate(batch):
                outputs[hook][offsets[i] : offsets[i + 1]] = values[row, spans[i][0] : spans[i][1]]
        done += len(batch)
        if progress:
            progress(done, len(tokens), "texts")
    for output in outputs.values():
        output.flush()
    np.save(folder / "offsets.npy", offsets)


def _norm_limit(rows: np.ndarray, ratio: float | None) -> float | None:
    if ratio is None:
        return None
    norms = np.concatenate([np.linalg.norm(rows[i : i + CHUNK], axis=1) for i in range(0, len(rows), CHUNK)])
    return float(np.median(norms) * ratio)


def _drop_outliers(folder: Path, hooks: list[str], limit: float | None) -> np.ndarray:
    """Rewrite the bank without rows above the limit; returns the rows left of each text."""
    offsets = np.load(folder / "offsets.npy")
    rows = mapped(folder, hooks[0])
    if limit is None:
        return np.diff(offsets)
    keep = np.concatenate([np.linalg.norm(rows[i : i + CHUNK], axis=1) <= limit for i in range(0, len(rows), CHUNK)])
    for hook in hooks:
        source = mapped(folder, hook)
        target = new_rows(folder / "kept.npy", (int(keep.sum()), source.shape[1]))
        written = 0
        for start in range(0, len(source), CHUNK):
            chunk = source[start : start + CHUNK][keep[start : start + CHUNK]]
            target[written : written + len(chunk)] = chunk
            written += len(chunk)
        target.flush()
        (folder / "kept.npy").replace(folder / f"{hook}.npy")
    left = np.concatenate([[0], np.cumsum(keep)])[offsets]
    np.save(folder / "offsets.npy", left)
    return np.diff(left)


def _sources(texts: list[Text], tokens: list[Tokens], rows: np.ndarray) -> list[dict[str, Any]]:
    """Texts, tokens and rows by data set."""
    names = [text.data_set for text in texts]
    return [
        {
            "data_set": name,
            "texts": names.count(name),
            "tokens": sum(len(ids) for ids, owner in zip(tokens, names, strict=True) if owner == name),
            "rows": int(sum(n for n, owner in zip(rows, names, strict=True) if owner == name)),
        }
        for name in sorted(set(names))
    ]


def _capture_point(hook: str) -> tuple[str, int]:
    """Where TransformerLens can read `hook` soonest, and how many blocks must run for it.

    A block's input is the output of the block before it, which needs one block less to run.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    assert match, hook
    layer, name = int(match[1]), match[2]
    if name == "hook_resid_pre" and layer > 0:
        return f"blocks.{layer - 1}.hook_resid_post", layer
    return hook, layer + 1


def _length_sorted(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts, longest last, in batches of at most `batch_tokens` padded tokens (or one text)."""
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
    """Activations `[texts, positions, d]` by name; texts are padded on the right, which no causal position sees."""
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
