"""Extraction of banks: a language model's activations over texts, and Gaussian rows with the same moments.

A bank of more than `activations.shard_rows` rows is extracted shard by shard; each is kept as soon as it is there.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from husai_lib.activations.banks import CHUNK, Bank
from husai_lib.activations.language_model import LanguageModel, Tokens
from husai_lib.activations.onednn import LinearByOneDnn
from husai_lib.activations.texts import ProbingSet, Text
from husai_lib.errors import DataError, ModelError
from husai_lib.evidence.cache import SHARDS, cached
from husai_lib.files import canonical_json, sha256_text, write_json
from husai_lib.params.inputs import ActivationParams
from husai_lib.randomness import torch_generator
from husai_lib.tasks import Progress

Positions = tuple[list[Tokens], list[tuple[int, int]]]
"""The tokens of each text, and the span of positions to keep."""


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
    `norm_limit` (by default `max_norm_ratio` times the median norm of these rows or, in shards, of those of the first).
    Raises DataError if there are no texts, if they have fewer positions than `rows`, or if no row is left.
    """
    if not texts:
        raise DataError("there are no texts to read; name data sets that have some")
    if rows is None or rows <= params.shard_rows:
        return _text_shard(model, texts, params, hooks, rows=rows, norm_limit=norm_limit, progress=progress)
    lengths = [max(0, len(ids) - params.skip_positions) for ids in _tokens_until(model, texts, params, rows)]
    shard_of = (np.cumsum(lengths) - 1).clip(0) // params.shard_rows
    _, starts = np.unique(shard_of, return_index=True)
    shards: list[Bank] = []
    for start, end in pairwise([*starts.tolist(), len(lengths)]):
        # only the last text of all is cut; elsewhere, texts without a row belong to a shard as well
        count = sum(lengths[start:end]) if end == len(lengths) else None
        shards.append(_text_shard(model, texts[start:end], params, hooks, rows=count, norm_limit=norm_limit))
        norm_limit = shards[0].meta["norm_limit"]
        if progress:
            progress(len(shards), len(starts), "shards of activations read")
    return joined_bank(shards, hooks)


def _text_shard(
    model: LanguageModel,
    texts: list[Text],
    params: ActivationParams,
    hooks: list[str],
    *,
    rows: int | None,
    norm_limit: float | None,
    progress: Progress | None = None,
) -> Bank:
    own = params.model_dump(include={"context_tokens", "skip_positions", "max_norm_ratio"})
    own |= {"kind": "text", "rows": rows, "norm_limit": norm_limit}

    def read() -> Positions:
        tokens = _tokens_until(model, texts, params, rows)
        return tokens, [(params.skip_positions, len(ids)) for ids in tokens]

    return _bank(model, texts, params, hooks, own=own, read=read, progress=progress)


def last_token_bank(model: LanguageModel, texts: list[Text], params: ActivationParams, hook_name: str) -> Bank:
    """The activation at the last token of each text, a row a text, as in sae-probes; DataError where there is none."""

    def read() -> Positions:
        tokens = model.tokenize([text.text for text in texts], params.probe_tokens, keep="end")
        for text, ids in zip(texts, tokens, strict=True):
            if not ids:
                raise DataError(f"data set {text.data_set!r} has a text without tokens; set model.prepend_bos: true")
        return tokens, [(len(ids) - 1, len(ids)) for ids in tokens]

    own = {"kind": "last token", "probe_tokens": params.probe_tokens}
    return _bank(model, texts, params, [hook_name], own=own, read=read)


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
    """Gaussian rows with the mean and covariance of `bank`, in as many shards: a null to train on."""
    moments, nulls = cache(partial(_moments, bank)), []

    def drawn(count: int, purpose: str) -> Iterator[torch.Tensor]:
        mean, root = moments()
        generator = torch_generator(seed, purpose)
        for start in range(0, count, CHUNK):
            yield torch.randn(min(CHUNK, count - start), len(mean), generator=generator) @ root.T + mean

    for n, shard in enumerate(bank.shards):
        inputs = {"kind": "gaussian", "bank": bank.sha256, "seed": seed} | ({"shard": n} if n else {})
        chunks = drawn(len(shard.rows), f"gaussian activations{f', shard {n}' if n else ''}")
        nulls.append(_given(inputs, bank.hook_name, shard.shape, chunks))
    return joined_bank(nulls, [bank.hook_name])


def _moments(bank: Bank) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean `[d_in]` of the rows and the root `[d_in, d_in]` of their covariance."""
    n, d_in = bank.shape
    mean, outer = bank.mean(), torch.zeros(d_in, d_in, dtype=torch.float64)
    for chunk in bank.chunks():
        rows = chunk.double()
        outer += rows.T @ rows
    values, vectors = torch.linalg.eigh(outer / n - torch.outer(mean, mean))
    return mean.float(), (vectors * values.clamp(min=0).sqrt()).float()


def rows_bank(rows: np.ndarray, hook_name: str) -> Bank:
    """Given rows `[n, d_in]` as a bank, those of one text."""
    content = hashlib.sha256(rows.tobytes()).hexdigest()
    inputs = {"kind": "given", "shape": list(rows.shape), "sha256": content}
    return _given(inputs, hook_name, rows.shape, [rows])


def scaled_bank(bank: Bank, factor: float) -> Bank:
    """The rows of `bank` times a factor, in as many shards."""
    if len(bank.shards) > 1:
        return joined_bank([scaled_bank(shard, factor) for shard in bank.shards], [bank.hook_name])
    inputs, limit = {"kind": "scaled", "bank": bank.entry.key, "factor": factor}, bank.meta["norm_limit"]
    meta, chunks = bank.meta | {"norm_limit": limit and limit * factor}, (rows * factor for rows in bank.chunks())
    return _given(inputs, bank.hook_name, bank.shape, chunks, offsets=bank.offsets, meta=meta)


def joined_bank(shards: Sequence[Bank], hooks: Sequence[str]) -> Bank:
    """Banks of consecutive rows as one, which refers to them."""
    if len(shards) == 1:
        return shards[0]
    parts = {hook: [{"key": s.entry.key, "sha256": s.at(hook).sha256} for s in shards] for hook in hooks}

    def make(folder: Path) -> None:
        write_json(folder / SHARDS, [shard.entry.key for shard in shards])
        for hook, listed in parts.items():
            write_json(folder / f"{hook}.json", listed)
        texts = np.concatenate([np.diff(shard.offsets) for shard in shards])
        np.save(folder / "offsets.npy", np.cumsum([0, *texts]))
        sources = pd.DataFrame([source for shard in shards for source in shard.meta["sources"]])
        merged = sources.groupby("data_set", as_index=False).sum().to_dict("records") if len(sources) else []
        write_json(folder / "meta.json", {"norm_limit": shards[0].meta["norm_limit"], "sources": merged})

    return Bank(cached("banks", __name__, {"kind": "shards", "shards": parts}, make), hooks[0])


def _given(
    inputs: dict[str, Any],
    hook_name: str,
    shape: tuple[int, int],
    chunks: Iterable[Any],
    *,
    offsets: np.ndarray | None = None,
    meta: dict[str, Any] | None = None,
) -> Bank:
    """The bank of rows that come in chunks, by default those of one text; they are read unless the cache has it."""

    def make(folder: Path) -> None:
        _write_rows(folder / f"{hook_name}.npy", shape, chunks)
        np.save(folder / "offsets.npy", np.array([0, shape[0]]) if offsets is None else offsets)
        write_json(folder / "meta.json", meta or {"norm_limit": None, "sources": []})

    return Bank(cached("banks", __name__, inputs | {"hook": hook_name}, make), hook_name)


def _bank(
    model: LanguageModel,
    texts: list[Text],
    params: ActivationParams,
    hooks: list[str],
    *,
    own: dict[str, Any],
    read: Callable[[], Positions],
    progress: Progress | None = None,
) -> Bank:
    """The bank of the positions that `read` finds; `own` is what its key holds beside model, texts and hooks."""
    inputs = {
        "model": model.identity,
        "texts": sha256_text(canonical_json([[text.data_set, text.text] for text in texts])),
        "hooks": hooks,
        "batch_tokens": params.batch_tokens,
        "device": model.device,
        **own,
    }

    def make(folder: Path) -> None:
        tokens, spans = read()
        offsets = np.cumsum([0, *(max(0, end - start) for start, end in spans)])
        outputs: dict[str, np.memmap] = {}
        texts_of: dict[tuple[int, ...], list[int]] = {}  # prompts that occur several times are read once
        for i, ids in enumerate(tokens):
            texts_of.setdefault(tuple(ids), []).append(i)
        distinct, done = list(texts_of), 0
        for batch in _length_sorted([len(ids) for ids in distinct], params.batch_tokens):
            for hook, values in _forward(model, [distinct[j] for j in batch], hooks).items():
                if hook not in outputs:
                    outputs[hook] = _new_rows(folder / f"{hook}.npy", (int(offsets[-1]), values.shape[-1]))
                for row, j in enumerate(batch):
                    for i in texts_of[distinct[j]]:
                        outputs[hook][offsets[i] : offsets[i + 1]] = values[row, spans[i][0] : spans[i][1]]
            done += sum(len(texts_of[distinct[j]]) for j in batch)
            if progress:
                progress(done, len(tokens), "texts")
        for output in outputs.values():
            output.flush()
        offsets, limit = _drop_outliers(folder, hooks, offsets, own.get("norm_limit"), own.get("max_norm_ratio"))
        np.save(folder / "offsets.npy", offsets)
        counts = {"texts": 1, "tokens": [len(ids) for ids in tokens], "rows": np.diff(offsets)}
        sources = pd.DataFrame({"data_set": [text.data_set for text in texts[: len(tokens)]], **counts})
        sources = sources.groupby("data_set", as_index=False).sum()
        write_json(folder / "meta.json", {"norm_limit": limit, "sources": sources.to_dict("records")})

    return Bank(cached("banks", __name__, inputs, make), hooks[0])


def _tokens_until(model: LanguageModel, texts: list[Text], params: ActivationParams, rows: int | None) -> list[Tokens]:
    """The tokens of the first texts that have `rows` positions to keep, the last text cut to fit; or of all texts."""
    tokens: list[Tokens] = []
    found, skip = 0, params.skip_positions
    for start in range(0, len(texts), 256):
        batch = [text.text for text in texts[start : start + 256]]
        for ids in model.tokenize(batch, params.context_tokens):
            tokens.append(ids if rows is None else ids[: skip + rows - found])
            found += max(0, len(tokens[-1]) - skip)
            if found == rows:
                return tokens
    if rows is not None:
        remedy = "name more data sets or ask for fewer rows"
        raise DataError(f"the texts have {found} token positions but {rows} were requested; {remedy}")
    return tokens


def _drop_outliers(
    folder: Path, hooks: list[str], offsets: np.ndarray, limit: float | None, ratio: float | None
) -> tuple[np.ndarray, float | None]:
    """Rewrite a bank without rows above the limit, by default `ratio` times the median norm; new offsets and limit."""
    if limit is None and ratio is None:
        return offsets, None
    norms = np.concatenate([np.linalg.norm(chunk, axis=1) for chunk in _chunks(folder, hooks[0])])
    limit = limit or float(np.median(norms) * ratio)
    keep = norms <= limit
    for hook in hooks:
        d_in = next(_chunks(folder, hook)).shape[1]
        kept = np.array_split(keep, range(CHUNK, len(keep), CHUNK))
        chunks = (chunk[some] for chunk, some in zip(_chunks(folder, hook), kept, strict=True))
        _write_rows(folder / "kept.npy", (int(keep.sum()), d_in), chunks)
        (folder / "kept.npy").replace(folder / f"{hook}.npy")
    return np.concatenate([[0], np.cumsum(keep)])[offsets], limit


def _chunks(folder: Path, hook: str) -> Iterator[np.ndarray]:
    rows = np.load(folder / f"{hook}.npy", mmap_mode="r")
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _write_rows(path: Path, shape: tuple[int, int], chunks: Iterable[Any]) -> None:
    rows, written = _new_rows(path, shape), 0
    for chunk in chunks:
        rows[written : written + len(chunk)] = chunk
        written += len(chunk)
    rows.flush()


def _new_rows(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A new float32 array on disk, its space allocated at once: a full disk would otherwise kill the process later."""
    if not shape[0]:
        remedy = "use longer texts, or change activations.skip_positions or activations.max_norm_ratio"
        raise DataError(f"no row of these texts is left; {remedy}")
    rows: np.memmap = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return rows


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


def _soonest(point: str) -> str:
    """Where an activation can be read first: a block's input is the output of the block before it."""
    _, layer, name = point.split(".", 2)
    before = name == "hook_resid_pre" and int(layer) > 0
    return f"blocks.{int(layer) - 1}.hook_resid_post" if before else point


@torch.inference_mode()
def _forward(model: LanguageModel, tokens: Sequence[Sequence[int]], hooks: list[str]) -> dict[str, np.ndarray]:
    """Activations `[texts, positions, d]` by hook, those of a joined hook side by side.

    Padding is on the right, where no causal position attends to it. No more blocks of the model run than needed.
    """
    padded = pad_sequence([torch.tensor(ids or [0]) for ids in tokens], batch_first=True)
    model_name, cfg = model.params.name, model.bridge.cfg
    if padded.shape[1] > cfg.n_ctx:
        raise ModelError(
            f"{model_name} reads {cfg.n_ctx} tokens at most; lower activations.context_tokens and probe_tokens"
        )
    points = {point: _soonest(point) for point in "+".join(hooks).split("+")}
    names = list(points.values())
    stop = 1 + max(int(name.split(".")[1]) for name in names)
    with LinearByOneDnn():
        _, captured = model.bridge.run_with_cache(padded.to(model.device), names_filter=names, stop_at_layer=stop)
    if absent := [point for point, name in points.items() if name not in captured]:
        layers = f"its {cfg.n_layers} layers are numbered from 0"
        raise ModelError(f"{model_name} has no {absent[0]} ({layers}); choose another activations.hook_name")
    found = {}
    for hook in hooks:
        found[hook] = torch.cat([captured[points[point]].float() for point in hook.split("+")], dim=-1).cpu().numpy()
        if not np.isfinite(found[hook]).all():
            raise DataError(f"activation {hook} has a value that is not finite; set model.dtype: float32")
    return found
