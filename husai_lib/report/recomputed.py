"""Numbers that need no training: decoders that are seeded, and those whose weights are in the cache. No torch."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.optimize import linear_sum_assignment

from husai_lib.evidence.cache import CACHED, is_there, open_entry, shards_of
from husai_lib.evidence.rows.consistency import random_of
from husai_lib.intervals import mean_over_pairs, pair_table
from husai_lib.randomness import numpy_generator
from husai_lib.report.checks import UNCHECKED, Audited, Check, same

WEIGHTS = "sae_weights.safetensors"
WIDEST = 4096
"""Latents up to which pairs are matched again: an assignment takes a time that grows with their cube."""
CLOSE = 1e-4
"""Relative difference up to which a matched cosine is the same: processors add in other orders."""
NOT_HERE = "cached files not here"
TOO_WIDE = f"pairs of SAEs of more than {WIDEST:,} latents, not matched again"
Decoder = NDArray[np.float32]


def check_seeded(one: Audited) -> Iterator[Check]:
    """PW-MCC of random decoders, as nulls of the conditions and as a control: the same seeds give the same numbers."""
    run = one.tables
    d_in = {bank.bank: bank.d_in for bank in run.rows("activations", "banks")}["training"]
    if "+" in run.parameters["activations"]["hook_name"]:
        yield "random decoders of SAEs that read joined layers", UNCHECKED, None
        return
    for step, group in [(of, row) for of, table in run.tables if table == "groups" for row in run.rows(of, table)]:
        members = run.rows(step, "members", condition=group.condition)
        if len(members) == 1:
            yield f"null_random of {group.condition}, a single seed,", group.null_random, None
        elif members[0].d_sae > WIDEST:
            yield TOO_WIDE, UNCHECKED, None
        else:
            pairs = random_pairs((members[0].d_sae, d_in), tuple(member.seed for member in members))
            null = mean_over_pairs(pair_table(len(members), pairs))
            yield from _close(f"null_random of {group.condition}", group.null_random, null)
    own, swept = run.candidate.members, run.rows("consistency", "members")
    beside = {("stress", "random_decoder", one.d_sae): own for one in own}
    beside |= {("consistency", random_of(one.d_sae), one.d_sae): swept for one in swept}
    for (step, name, d_sae), saes in beside.items():
        seeds = list(dict.fromkeys(sae.seed for sae in saes))
        for row in run.rows(step, "pairs", of=name):
            if d_sae > WIDEST:
                yield TOO_WIDE, UNCHECKED, None
                continue
            must = random_pairs((d_sae, d_in), tuple(seeds))[seeds.index(row.seed_a), seeds.index(row.seed_b)]
            yield from _close(f"PW-MCC of the random decoders of seeds {row.seed_a} and {row.seed_b}", row.pwmcc, must)


def check_cached(one: Audited) -> Iterator[Check]:
    """Banks and weights that this machine's cache holds have the stated hashes; pairs of seeds follow from weights."""
    run = one.tables
    for (step, table), rows in run.tables.items():
        for row in rows if table in CACHED else ():
            if not is_there(CACHED[table], row.key):
                yield NOT_HERE, UNCHECKED, None
                continue
            stated, found = row.sha256 if table == "banks" else row.weights_sha256, open_entry(CACHED[table], row.key)
            for shard in shards_of(found.path):
                open_entry("banks", shard)  # raises if it is damaged
            must = stated if stated in found.files.values() else [*found.files.values()]
            yield f"SHA-256 of {step}/{table} {row.key[:12]} in the cache", stated, must
    for step in [step for step, table in run.tables if table == "pairs"]:
        table, column = ("control_saes", "control") if step == "stress" else ("members", "condition")
        for row in run.rows(step, "pairs"):
            saes = [sae for sae in run.rows(step, table, **{column: row.of}) if sae.seed in (row.seed_a, row.seed_b)]
            if not saes:
                continue  # random decoders have none
            if saes[0].d_sae > WIDEST:
                yield TOO_WIDE, UNCHECKED, None
            elif not all(is_there("saes", sae.key) for sae in saes):
                yield NOT_HERE, UNCHECKED, None
            else:
                a, b = (load_file(open_entry("saes", sae.key).path / WEIGHTS)["W_dec"] for sae in saes)
                what = f"PW-MCC of {row.of}, seeds {row.seed_a} and {row.seed_b}"
                yield from _close(what, row.pwmcc, matched_cosine(a, b))


def _close(what: str, stated: float, must: float) -> Iterator[Check]:
    yield what, stated, stated if same(stated, must) or abs(stated - must) <= CLOSE * abs(must) else must


@cache
def random_pairs(shape: tuple[int, int], seeds: tuple[int, ...]) -> dict[tuple[int, int], float]:
    """PW-MCC of each pair of decoders `[d_sae, d_in]` of random unit rows, one a seed, by their positions."""
    rows = [numpy_generator(seed, "random_decoder").standard_normal(shape, np.float32) for seed in seeds]
    return {(i, j): matched_cosine(rows[i], rows[j]) for i, j in combinations(range(len(seeds)), 2)}


def matched_cosine(a: Decoder, b: Decoder) -> float:
    """Mean |cosine| of the rows of two decoders `[d_sae, d_in]` under the best one-to-one assignment."""
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(np.finfo(np.float32).tiny) for rows in (a, b))
    cosines = np.abs(a @ b.T)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean(dtype=np.float64))
