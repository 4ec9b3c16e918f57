"""How often the gate releases what it should not, and how often it sees what is true: by simulation.

Records of a cycle are drawn from a world whose true deltas are known. Groups are selected, the selected one is measured
again at fresh seeds, and its external gates are read. A false release of a gate is a pass although the true delta of
the selected group, over all seeds and data sets that might have been drawn, is zero or less.

The arithmetic of the gates is repeated here on arrays, for 100,000 cycles a world. In every world, some of these
cycles are also decided by `selection.select` and `gates.evaluate` from rows; the script stops if any verdict differs.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, NamedTuple

import numpy as np
import typer
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown
from scipy import stats

from husai_lib.decisions.candidates import Candidate
from husai_lib.decisions.gates import EXTERNAL, Judged, evaluate
from husai_lib.decisions.planning import Spread as Plan
from husai_lib.decisions.selection import rank, select
from husai_lib.evidence.rows.base import ERROR_RATE, shared_level
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.files import REPOSITORY
from husai_lib.intervals import LEVEL, share_of_luck, t_quantile
from husai_lib.params.rules import GateParams, SelectionParams

Array = NDArray[np.float64]
GROUPS, SEEDS, SETS = (1, 7, 20, 50), (3, 4, 8), (8, 16, 32)
EFFECTS, FRESH = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), (4, 8, 16)
RULES, GATES = SelectionParams(bootstraps=0), GateParams()
MODES = ("before", "shared", "fresh", "fresh, 3 to select")
"""How the gate is read: selected seeds at 95 % over seeds alone, as it was; selected seeds, the error rate shared among
the groups; fresh seeds; fresh seeds after a selection by three."""
PAGE, FIGURE = REPOSITORY / "docs" / "error_rate.md", REPOSITORY / "docs" / "error_rate.png"
BESIDE_RAW = 0.7
"""Correlation over seeds of the calibrated CE-Bench score with the raw one."""


class Spread(NamedTuple):
    """Standard deviations of a SAEBench delta on one data set (AUC)."""

    seed: float
    """Of an SAE, on all data sets alike."""
    group: float
    """Of a group on a data set, at all seeds alike: what a selection by these data sets takes advantage of."""
    shared: float
    """Of a data set, for all groups alike."""
    probe: float
    """Of one probe."""


SPREADS = {
    "as measured": Spread(0.010, 0.013, 0.085, 0.043),  # the components of variance of the quickstart of 28 November
    "seeds": Spread(0.010, 0.001, 0.0, 0.0),
    "data sets": Spread(0.002, 0.050, 0.0, 0.0),
    "both": Spread(0.010, math.nan, 0.0, 0.0),  # group: such that both parts of the standard error are equal
}
TRUTHS: dict[str, tuple[float, float, float]] = {
    "all gates at the threshold": (0, 0, 0),
    "CE-Bench truly better": (0, 2, 2),
    "SAEBench truly better": (2, 0, 0),
    "half of the groups worse": (-1, -1, -1),
    "half of the groups better": (1, 1, 1),
    "one group far behind on CE-Bench": (0, -30, 0),
}
"""True deltas on SAEBench, CE-Bench and calibrated CE-Bench, in standard deviations over seeds: of all groups, of every
second one (`half`), or of the first alone (`one`)."""


@dataclass(frozen=True)
class World:
    """What is true of the groups of a cycle, and how it is measured."""

    groups: int = 7
    seeds: int = 8
    sets: int = 16
    spread: str = "as measured"
    rho: float = 0.5
    """Correlation of the CE-Bench deltas of two groups at one seed, whose baseline is the same SAE."""
    truth: str = "all gates at the threshold"
    fresh: int = 0
    """Number of fresh seeds; 0 for as many as selected."""
    effect: float = 0.0
    """What is added to every true delta, in standard deviations over seeds."""

    @property
    def n_fresh(self) -> int:
        return self.fresh or self.seeds

    @property
    def deviations(self) -> Spread:
        found = SPREADS[self.spread]
        even = found.seed * math.sqrt(self.sets / self.n_fresh)
        return found._replace(group=even) if math.isnan(found.group) else found

    @property
    def unit(self) -> float:
        """Standard deviation of the SAEBench delta of an SAE over seeds: the unit of an effect on it."""
        return math.hypot(self.deviations.seed, self.deviations.probe / math.sqrt(self.sets))

    @property
    def true(self) -> Array:
        """The true deltas `[groups, 3]`."""
        at = np.arange(self.groups)
        chosen = {"half": at % 2 == 1, "one": at == 0}.get(self.truth.split()[0], at >= 0)
        deltas = np.where(chosen[:, None], TRUTHS[self.truth], 0.0) + self.effect
        return deltas * [self.unit, 1, 1]


@dataclass(frozen=True)
class Seen:
    """What the gates read of the chosen group in n cycles."""

    probes: Array
    """SAEBench deltas `[n, seeds, sets]`."""
    cebench: Array
    """`[n, seeds]`; the same of the calibrated one."""
    calibrated: Array
    luck: tuple[Array, Array, Array]
    """Of each metric, what seeds add to the truth and to the data sets, `[n, groups, seeds]`: of all groups where one
    was chosen by these seeds, else of the chosen one."""


@dataclass(frozen=True)
class Cycles:
    """n cycles of a world: what is selected by."""

    world: World
    effects: Array
    """Of data sets, `[n, groups, sets]`."""
    luck: tuple[Array, Array, Array]
    """Of seeds on SAEBench, CE-Bench and calibrated CE-Bench, `[n, groups, seeds]`."""
    variance: Array
    """Explained variance `[n, groups, seeds]`."""

    deltas: tuple[Array, Array, Array]
    """Of the SAEs, of which luck is a part."""

    def chosen(self, seeds: int) -> NDArray[np.intp]:
        """The group that is selected by the first `seeds` seeds, `[n]`."""
        metrics = (*self.deltas[:2], self.variance)
        return rank(np.stack([lower(own[..., :seeds]) for own in metrics], axis=-1), RULES).winner


def draw(world: World, n: int, rng: np.random.Generator) -> Cycles:
    sd, shape = world.deviations, (n, world.groups, world.seeds)
    effects = rng.normal(size=(n, world.groups, world.sets)) * sd.group
    effects += rng.normal(size=(n, 1, world.sets)) * sd.shared
    luck = (rng.normal(size=shape) * world.unit, *scores(world, shape, rng))
    saebench, cebench, calibrated = (own + world.true[:, m : m + 1] for m, own in enumerate(luck))
    deltas = (saebench + effects.mean(axis=-1, keepdims=True), cebench, calibrated)
    return Cycles(world, effects, luck, 0.7 + 0.01 * rng.normal(size=shape), deltas)


def scores(world: World, shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Luck of CE-Bench deltas `[n, groups, seeds]`, raw and calibrated, of standard deviation 1; rho is shared."""
    n, _, seeds = shape

    def deltas() -> Array:
        own, baseline = rng.normal(size=shape), rng.normal(size=(n, 1, seeds))
        return math.sqrt(1 - world.rho) * own - math.sqrt(world.rho) * baseline

    raw = deltas()
    return raw, BESIDE_RAW * raw + math.sqrt(1 - BESIDE_RAW**2) * deltas()


def selected(cycles: Cycles, chosen: NDArray[np.intp], rng: np.random.Generator) -> Seen:
    """The chosen group at the seeds that it was selected by; probes average to the deltas of their SAE."""
    world, here = cycles.world, np.arange(len(chosen))
    noise = rng.normal(size=(len(chosen), world.seeds, world.sets)) * world.deviations.probe
    about = noise + cycles.effects[here, chosen][:, None]
    saebench, cebench, calibrated = (own[here, chosen] for own in cycles.deltas)
    probes = saebench[..., None] + about - about.mean(axis=-1, keepdims=True)
    return Seen(probes, cebench, calibrated, cycles.luck)


def confirmed(cycles: Cycles, chosen: NDArray[np.intp], rng: np.random.Generator) -> Seen:
    """The chosen group at fresh seeds, on the data sets that it was selected by."""
    world, n, sd, true = cycles.world, len(chosen), cycles.world.deviations, cycles.world.true[chosen]
    luck = rng.normal(size=(n, world.n_fresh, world.sets)) * sd.probe
    luck += rng.normal(size=(n, world.n_fresh, 1)) * sd.seed
    raw, calibrated = scores(world, (n, 1, world.n_fresh), rng)
    probes = luck + cycles.effects[np.arange(n), chosen][:, None] + true[:, :1, None]
    return Seen(probes, raw[:, 0] + true[:, 1:2], calibrated[:, 0] + true[:, 2:],
                (luck.mean(axis=2)[:, None], raw, calibrated))  # fmt: skip


def half_width(values: Array, level: float) -> Array:
    """That of the t interval of the mean over the last axis."""
    n = values.shape[-1]
    return t_quantile(n - 1, level) * values.std(axis=-1, ddof=1) / math.sqrt(n)


def lower(values: Array, level: float = LEVEL) -> Array:
    return values.mean(axis=-1) - half_width(values, level)


def two_way_half(seen: Seen, level: float, sets_level: float) -> Array:
    """The half width of the SAEBench interval over seeds and data sets, `[n]`."""
    by_seed, by_set = seen.probes.mean(axis=2), seen.probes.mean(axis=1)
    over_sets, luck = half_width(by_set, sets_level), share_of_luck(by_set.shape[-1], sets_level)
    return luck * over_sets + np.hypot(half_width(by_seed, level), (1 - luck) * over_sets)


def verdicts(seen: Seen, level: float, sets_level: float) -> NDArray[np.bool_]:
    """Whether the chosen group passes each external gate, `[n, 3]`."""
    saebench = seen.probes.mean(axis=(1, 2)) >= two_way_half(seen, level, sets_level)
    return np.stack([saebench, lower(seen.cebench, level) >= 0, lower(seen.calibrated, level) >= 0], axis=-1)


def chance_of_saebench(world: World, seen: Seen, level: float) -> tuple[Array, Array]:
    """How likely SAEBench's gate passes, and a t bound over seeds alone exceeds the truth, whatever the mean luck is.

    The mean of normal values is independent of their deviations, so each is exact in what it does not draw. `[n]` each,
    where the seeds did not select.
    """
    luck = seen.luck[0][:, 0]
    error, half = world.unit / math.sqrt(luck.shape[-1]), two_way_half(seen, level, shared_level(world.groups))
    others = seen.probes.mean(axis=(1, 2)) - luck.mean(axis=-1)
    return stats.norm.cdf((others - half) / error), stats.norm.cdf(-half_width(luck, level) / error)


@dataclass
class Tally:
    """Verdicts of one mode in many cycles."""

    null: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether the true delta of the chosen group is zero or less, `[n, 3]` in each list entry."""
    passes: list[NDArray[np.bool_]] = field(default_factory=list)
    chances: list[Array] = field(default_factory=list)
    """The same, but how likely SAEBench's passes where that is known."""
    controls: list[Array] = field(default_factory=list)
    """Events whose probability is known, minus that, `[n, 3, 2]`: of each gate, over seeds and over data sets."""

    def false_release(self) -> tuple[Array, Array]:
        """The rate of each gate and its Monte Carlo error, `[3]` each."""
        return estimate(np.concatenate(self.chances) * np.concatenate(self.null), np.concatenate(self.controls))

    def power(self) -> Array:
        """How often each gate passes, and all of them, `[4]`."""
        passes = np.concatenate(self.passes)
        return np.append(passes.mean(axis=0), passes.all(axis=1).mean())


def estimate(events: Array, controls: Array) -> tuple[Array, Array]:
    """The rate of each event `[n, k]` with its standard error, by regression on controls `[n, k, 2]` of mean zero."""
    rates, errors = np.empty(events.shape[1]), np.empty(events.shape[1])
    for k in range(events.shape[1]):
        own, known = events[:, k], controls[:, k]
        slopes = np.linalg.lstsq(known - known.mean(axis=0), own - own.mean(), rcond=None)[0]
        left = own - known @ slopes
        rates[k], errors[k] = left.mean(), left.std(ddof=1) / math.sqrt(len(own))
    return rates, errors


def surplus(values: Array, level: float) -> Array:
    """The number of groups whose bound exceeds zero, minus how many do on average, `[n]`: values of mean zero."""
    return (lower(values, level) >= 0).sum(axis=-1) - values.shape[1] * (1 - level) / 2


def seeds_to_select(mode: str, world: World) -> int:
    return 3 if mode.endswith("3 to select") else world.seeds


def read(mode: str, cycles: Cycles, chosen: NDArray[np.intp], rng: np.random.Generator) -> tuple[Seen, float]:
    """What the gates read of the chosen group, and at which level over seeds."""
    if mode.startswith("fresh"):
        return confirmed(cycles, chosen, rng), shared_level(1)
    return selected(cycles, chosen, rng), shared_level(cycles.world.groups) if mode == "shared" else LEVEL


def simulate(world: World, n: int, seed: int = 0, modes: Sequence[str] = MODES, really: int = 4) -> dict[str, Tally]:
    """The verdicts of n cycles in each mode; the first `really` are decided from rows too."""
    rng, tallies = np.random.default_rng([seed, *repr(world).encode()]), {mode: Tally() for mode in modes}
    chunk = max(really, min(n, 500_000 // (world.groups * world.sets)))
    for done in range(0, n, chunk):
        cycles = draw(world, min(chunk, n - done), rng)
        over_sets = surplus(cycles.effects, shared_level(world.groups))
        by_seeds = {count: cycles.chosen(count) for count in {seeds_to_select(mode, world) for mode in modes}}
        for mode, tally in tallies.items():
            chosen = by_seeds[seeds_to_select(mode, world)]
            seen, level = read(mode, cycles, chosen, rng)
            if mode == "before":  # SAEBench too was read over seeds alone
                numbers = (seen.probes.mean(axis=2), seen.cebench, seen.calibrated)
                passes = np.stack([lower(own, level) >= 0 for own in numbers], axis=-1)
            else:
                passes = verdicts(seen, level, shared_level(world.groups))
                for i in range(really if done == 0 else 0):
                    check(cycles, mode, seen, i, (f"group_{chosen[i]:03d}", passes[i].tolist()))
            chances, known = passes.astype(float), [surplus(own, level) for own in seen.luck]
            if mode != "before" and (mode.startswith("fresh") or world.groups == 1):
                chances[:, 0], exceeds = chance_of_saebench(world, seen, level)
                known[0] = exceeds - (1 - level) / 2
            tally.passes.append(passes)
            tally.chances.append(chances)
            tally.null.append(world.true[chosen] <= 0)
            known = [np.stack([own, over_sets], axis=-1) for own in known]
            tally.controls.append(np.stack(known, axis=1))
    return tallies


def check(cycles: Cycles, mode: str, seen: Seen, i: int, expected: tuple[str, list[bool]]) -> None:
    """Decide cycle i from rows, by the library; RuntimeError where the choice or a verdict is not as expected."""
    condition = choice_from_rows(cycles, i, seeds_to_select(mode, cycles.world))
    found = condition, verdicts_from_rows(cycles.world, mode, seen, i)
    if found != expected:
        raise RuntimeError(f"{cycles.world}, {mode}, cycle {i}: the library gives {found}, not {expected}")


def choice_from_rows(cycles: Cycles, i: int, seeds: int) -> str:
    """The condition that `select` selects in cycle i."""
    metrics = (cycles.deltas[0][i], cycles.deltas[1][i], cycles.variance[i])
    found = select(
        [Candidate("frontier", f"group_{g:03d}", "topk", s, *(float(own[g, s]) for own in metrics), l0_matched=True)
         for g in range(cycles.world.groups) for s in range(seeds)], RULES,
    )  # fmt: skip
    assert found.winner
    return found.winner.row.condition


def verdicts_from_rows(world: World, mode: str, seen: Seen, i: int) -> list[bool]:
    """Whether each external gate of `evaluate` passes in cycle i."""
    seeds, sets = seen.probes.shape[1:]
    about = {"d_sae": 64, "k": 8, "l0": 8.0, "dead_fraction": 0.0, "explained_variance": 0.8, "weights_sha256": ""}
    members = [
        MemberRow.model_construct(
            l0_matched=True,
            condition="chosen", seed=s, saebench_delta=float(seen.probes[i, s].mean()), cebench_ceiling=1e6,
            cebench_delta=float(seen.cebench[i, s]), cebench_calibrated_delta=float(seen.calibrated[i, s]), **about,
        )
        for s in range(seeds)
    ]  # fmt: skip
    baselines = [MemberRow.model_construct(condition="baseline", seed=s, cebench_interpretability=0.0, **about)
                 for s in range(seeds)]  # fmt: skip
    probes = [
        ProbeRow.model_construct(condition="chosen", seed=s, data_set=f"set {d}", at=None, duplicates="drop", split=42,
                                 test_rows=200, delta=float(seen.probes[i, s, d]))
        for s, d in product(range(seeds), range(sets))
    ]  # fmt: skip
    shared = shared_level(world.groups)
    level = shared_level(1) if mode.startswith("fresh") else shared
    judged = Judged(members, baselines, probes, level=level, sets_level=shared)
    gates = {gate.gate: gate.verdict for gate in evaluate(judged, [], GATES).gates}
    return [gates[name] == "pass" for name in EXTERNAL]


def worlds(quick: bool) -> Iterator[World]:
    """Every world of the false releases."""
    if quick:
        yield from (World(groups, 3, 8, spread) for groups, spread in product((1, 7, 20), ("as measured", "both")))
        return
    for groups, seeds, sets, spread in product(GROUPS, SEEDS, SETS, ("as measured", "data sets", "both")):
        yield World(groups, seeds, sets, spread)
    for groups, seeds, rho in product(GROUPS, SEEDS, (0.0, 0.9)):
        yield World(groups, seeds, rho=rho)
    for groups, seeds in product(GROUPS, SEEDS):
        yield World(groups, seeds, spread="seeds")
    others = [truth for truth in TRUTHS if truth != World.truth]
    for groups, seeds, spread, truth in product(GROUPS[1:], SEEDS[::2], ("as measured", "both"), others):
        yield World(groups, seeds, 32, spread, truth=truth)
    for groups, truth in product(GROUPS[1:], (World.truth, "one group far behind on CE-Bench")):
        yield World(groups, 16, 113, "both", truth=truth)


class Cell(NamedTuple):
    """The rates of one world in one mode, `[3]` each."""

    world: World
    mode: str
    rates: Array
    errors: Array

    @property
    def worst(self) -> int:
        return int(self.rates.argmax())


def false_releases(quick: bool, n: int, jobs: int) -> list[Cell]:
    """The rates of every world and mode; a rate above the limit is estimated again from ten times as many cycles."""
    everyone = list(worlds(quick))

    def cells(world: World, n: int, seed: int) -> list[Cell]:
        return [Cell(world, mode, *tally.false_release()) for mode, tally in simulate(world, n, seed).items()]

    with Parallel(n_jobs=jobs) as parallel:
        first = parallel(delayed(cells)(world, n, 0) for world in everyone)
        above = [
            i
            for i, own in enumerate(first)
            if max(c.rates.max() for c in own if c.mode != "before") > ERROR_RATE + 1e-9
        ]
        for i, again in zip(above, parallel(delayed(cells)(everyone[i], 10 * n, 1) for i in above), strict=True):
            first[i] = again
    return [cell for own in first for cell in own]


def powers(quick: bool, n: int, jobs: int) -> dict[tuple[str, int, float], Array]:
    """How often each gate passes, and all do, by mode, number of seeds that the gate reads, and true effect."""
    effects, seeds = ((1.0,), (8,)) if quick else (EFFECTS, FRESH)
    asked = list(product(("fresh", "shared"), seeds, effects))

    def power(mode: str, seeds: int, effect: float) -> Array:
        world = World(seeds=3 if mode == "fresh" else seeds, fresh=seeds, effect=effect)
        return simulate(world, n, modes=[mode])[mode].power()

    return dict(zip(asked, Parallel(n_jobs=jobs)(delayed(power)(*one) for one in asked), strict=True))


def by_groups(
    cells: Sequence[Cell], gates: Sequence[int] = (0, 1, 2)
) -> dict[tuple[str, int, int], tuple[float, float]]:
    """The highest rate of these gates, with its error, by mode, groups and seeds."""
    found: dict[tuple[str, int, int], tuple[float, float]] = {}
    for cell, gate in product(cells, gates):
        key, one = (cell.mode, cell.world.groups, cell.world.seeds), (cell.rates[gate], cell.errors[gate])
        found[key] = max(found.get(key, (0.0, 0.0)), (float(one[0]), float(one[1])))
    return found


def usual(cells: Sequence[Cell], rho: float = 0.0) -> list[Cell]:
    """The cells of worlds with all gates at the threshold, 16 data sets, spreads as measured and this correlation."""
    return [cell for cell in cells if cell.world == World(cell.world.groups, cell.world.seeds, rho=rho)]


def percent(rate: float, error: float) -> str:
    return f"{100 * rate:.2f} ± {100 * error:.2f}"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, [":---"] + ["---:"] * (len(heads) - 1), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rates_table(columns: dict[str, dict[tuple[str, int, int], tuple[float, float]]]) -> str:
    """Rates by groups, from those of `by_groups` for each heading; one column for every number of seeds."""
    heads = {f"{name}, {seeds} seeds": (name, seeds) for name in columns for seeds in SEEDS}
    lines = []
    for groups in GROUPS:
        own = [{key[1:]: rate for key, rate in columns[name].items()}.get((groups, n)) for name, n in heads.values()]
        lines.append([str(groups), *(percent(*rate) if rate else "" for rate in own)])
    return table(["Groups", *heads], lines)


MODE_NAMES = {
    "before": "selected seeds at 95 %",
    "shared": "selected seeds, shared",
    "fresh": "fresh seeds",
    "fresh, 3 to select": "fresh seeds, 3 to select",
}


def worst_table(cells: Sequence[Cell]) -> str:
    """The worst cell of each mode and external gate."""
    lines = []
    for mode, gate in product(MODES[1:], range(3)):
        cell = max((cell for cell in cells if cell.mode == mode), key=lambda cell: float(cell.rates[gate]))
        world = cell.world
        number = f"{world.groups} group{'s' if world.groups > 1 else ''}"
        what = f"{number}, {world.seeds} seeds, {world.sets} sets, spread *{world.spread}*, {world.truth}"
        name = EXTERNAL[gate].removeprefix("external_")
        lines.append([MODE_NAMES[mode], name, percent(float(cell.rates[gate]), float(cell.errors[gate])), what])
    return table(["Gate reads", "Benchmark", "Worst rate (%)", "World"], lines)


def power_table(found: dict[tuple[str, int, float], Array]) -> str:
    effects = sorted({effect for _, _, effect in found})
    lines = []
    for (mode, seeds), (name, gate) in product(
        dict.fromkeys(key[:2] for key in found), {"CE-Bench": 1, "SAEBench": 0, "all three": 3}.items()
    ):
        lines.append([f"{MODE_NAMES[mode]}, {seeds}", name,
                      *(f"{100 * found[mode, seeds, effect][gate]:.0f}" for effect in effects)])  # fmt: skip
    return table(["Gate reads", "Benchmark", *(f"{effect:g} SD" for effect in effects)], lines)


def sets_table() -> str:
    """How often SAEBench's gate passes over eight fresh seeds, by data sets and true delta, as `husai plan` has it."""
    sd, deltas = SPREADS["as measured"], (0.02, 0.05, 0.1)
    variances = (sd.seed**2, sd.group**2 + sd.shared**2, sd.probe**2)
    plan = Plan(*variances, sets_level=shared_level(World.groups))
    lines = [[f"{n}", *(f"{100 * plan.power(delta, 8, n):.0f}" for delta in deltas)] for n in (*SETS, 64, 113)]
    return table(["Data sets", *(f"{delta:+g} AUC" for delta in deltas)], lines)


def figure(cells: Sequence[Cell], found: dict[tuple[str, int, float], Array]) -> Figure:
    drawn = Figure(figsize=(10.4, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    rates = by_groups(usual(cells), [1])
    looks = {"before": ("#D55E00", "s", ":"), "shared": ("#009E73", "^", "--"), "fresh": ("#0072B2", "o", "-")}
    groups = sorted({cell.world.groups for cell in cells})
    seeds = max(key[2] for key in rates)
    for mode, (color, marker, line) in looks.items():
        own = [100 * rates[mode, g, seeds][0] for g in groups]
        left.plot(range(len(groups)), own, color=color, marker=marker, linestyle=line, label=MODE_NAMES[mode])
    left.axhline(100 * ERROR_RATE, color="#595959", linewidth=1)
    left.annotate("2.5 %", (1.4, 100 * ERROR_RATE), xytext=(0, 4), textcoords="offset points", color="#595959")
    left.set_xticks(range(len(groups)), [f"{g}" for g in groups])
    left.set(xlabel="Groups that were compared", ylabel="False releases of CE-Bench (%)", ylim=(0, None))
    left.set_title(f"All groups at the threshold, {seeds} seeds", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    effects = sorted({effect for _, _, effect in found})
    for (n, marker), mode in product(zip(FRESH, "osD", strict=True), ("fresh", "shared")):
        if (mode, n, effects[0]) in found:
            own = [100 * found[mode, n, effect][1] for effect in effects]
            color, _, line = looks[mode]
            name = f"{n} {'fresh' if mode == 'fresh' else 'selected'} seeds"
            right.plot(effects, own, color=color, marker=marker, linestyle=line, label=name)
    right.axhline(80, color="#595959", linewidth=1)
    right.set(xlabel="True CE-Bench delta (SD over seeds)", ylabel="CE-Bench gate passes (%)", ylim=(0, 100))
    right.set_title("7 groups", fontsize=10)
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def results(cells: Sequence[Cell], found: dict[tuple[str, int, float], Array], about: str) -> dict[str, str]:
    """The parts of the page, by the name of their place."""
    before, now = ([cell for cell in cells if (cell.mode == "before") == then] for then in (True, False))
    by_mode = {MODE_NAMES[mode]: by_groups([cell for cell in now if cell.mode == mode]) for mode in ("shared", "fresh")}
    return {
        "about": about,
        "before": rates_table({"CE-Bench": by_groups(usual(before), [1]), "SAEBench": by_groups(usual(before), [0])}),
        "now": rates_table(by_mode),
        "worst": worst_table(now),
        "power": power_table(found),
        "sets": sets_table(),
    }


def write_page(parts: dict[str, str]) -> None:
    """Put each part between its two marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        marks = re.compile(rf"(?s)(<!-- {name} -->\n).*?(<!-- end of {name} -->)")
        assert marks.search(text), f"{PAGE} has no place for {name}"
        text = marks.sub(lambda match, own=part: f"{match[1]}\n{own}\n\n{match[2]}", text)
    PAGE.write_text(text, encoding="utf-8")


def main(
    *,
    draws: Annotated[int, typer.Option(help="Cycles of each world.")] = 20_000,
    quick: Annotated[bool, typer.Option("--quick", help="A few worlds only.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.")] = -1,
    write: Annotated[bool, typer.Option("--write", help="Put tables and figure into docs/error_rate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Last line: the two numbers as JSON.")] = False,
) -> None:
    """Simulate the error rate and the power of the external gates."""
    began = time.perf_counter()
    cells, found = false_releases(quick, draws, jobs), powers(quick, draws, jobs)
    seconds, n_worlds = time.perf_counter() - began, len(cells) // len(MODES)
    about = (
        f"`python benchmarks/error_rate.py --draws {draws} --write`: {n_worlds:,} worlds, {draws:,} cycles each (ten "
        f"times as many where a rate exceeded 2.5 %), {seconds:.0f} s on {os.cpu_count()} cores ({platform.machine()})."
    )
    parts = results(cells, found, about)
    for part in parts.values():
        Console(width=None if Console().is_terminal else 200).print(Markdown(part))
    if write:
        write_page(parts)
        figure(cells, found).savefig(FIGURE, dpi=130, metadata={"Software": None})
    if as_json:
        worst = max(float(cell.rates.max()) for cell in cells if cell.mode != "before")
        print(json.dumps({"false_release_worst": round(worst, 4), "power_at_1sd_8_seeds": round(
            float(found["fresh", 8, 1.0][1]), 4)}))  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
