"""Whether a run holds everything that its parameters ask for, and nothing else: SAEs, groups, pairs, probes, tasks."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import Any

from husai_lib.decisions.acceptance import acceptance
from husai_lib.evidence.rows.base import GIVEN
from husai_lib.evidence.rows.consistency import random_of
from husai_lib.evidence.rows.controls import PROBED, control_names
from husai_lib.evidence.rows.scaling import EFFECTS_ON
from husai_lib.evidence.steps import condition_of, why_unconfirmed
from husai_lib.params.conditions import Condition, baseline_name, baseline_seeds, baseline_shapes
from husai_lib.params.cycle import CycleParams
from husai_lib.params.sections import check
from husai_lib.report.checks import Audited, Check, follow

Groups = dict[str, list[tuple[Condition, list[int]]]]
"""The conditions of each step that trains groups, each with its seeds."""
Sae = tuple[str, str, int, int, int]
"""Condition, architecture, seed, `d_sae` and k."""


def completeness(one: Audited) -> Iterator[Check]:
    """Which SAEs, groups, pairs, probes and tasks there must be by the parameters, no more and no less."""
    rows, cycle = one.tables.rows, check(CycleParams, one.parameters, "parameters.json")
    groups = {name: [(c, seeds) for c in conditions] for name, (conditions, seeds) in cycle.trained.items()}
    saes = {name: [_sae(c, seed) for c, seeds in of for seed in seeds] for name, of in groups.items()}
    saes["baselines"] = _baselines(one, "baselines", [*cycle.trained.values()])
    saes["scaling"] = []
    if cycle.scaling:
        grid, seeds = cycle.scaling.conditions(), cycle.scaling.seeds or cycle.seeds
        groups["scaling"] = [(c, seeds) for c in grid]
        as_baseline = {"architecture": cycle.baseline.architecture}
        baselines = [c.model_copy(update=as_baseline | {"name": baseline_name(c.name)}) for c in grid]
        saes["scaling"] = [_sae(c, seed) for c in (*grid, *baselines) for seed in seeds]
        effects = [(metric, of) for metric in EFFECTS_ON for of in cycle.scaling.effects()]
        yield "effects", _values(rows("scaling", "effects"), "metric", "of"), effects
    chosen, fresh_seeds = one.records["selection"].summary["selected"], cycle.confirmation.seeds
    groups["confirmation"], saes["confirmation"] = [], []
    if not why_unconfirmed(chosen, fresh_seeds, one.run.find_record):
        condition = condition_of(chosen, one.run.find_record)
        groups["confirmation"] = [(condition, fresh_seeds)]
        own = [_sae(condition, seed) for seed in fresh_seeds]
        saes["confirmation"] = own + _baselines(one, "confirmation", [([condition], fresh_seeds)])
    yield from _measured(one, cycle, saes)
    for step, of in groups.items():
        yield f"conditions of groups of {step}", [g.condition for g in rows(step, "groups")], [c.name for c, _ in of]
    yield from _sweep(one, cycle, groups.get("consistency", []))
    yield from _references(one, groups)
    yield from _pairs(one, groups)
    yield from _controls(one, cycle)
    yield from _inputs(one, cycle)


def _values(rows: Iterable[Any], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(row, column) for column in columns) for row in rows]


def _in_any_order(what: str, stated: Iterable[Any], must: Iterable[Any]) -> Check:
    return what, sorted(stated, key=repr), sorted(must, key=repr)


def _sae(condition: Condition, seed: int) -> Sae:
    return (condition.name, condition.architecture, seed, condition.d_sae, condition.k)


def _baselines(one: Audited, step: str, sweeps: list[tuple[list[Condition], list[int]]]) -> list[Sae]:
    """The given SAE, if there is one, and a trained one for each seed and shape that it does not match."""
    given = [row for row in one.tables.rows(step, "members") if row.condition == GIVEN][:1]
    shapes, seeds = baseline_shapes(c for conditions, _ in sweeps for c in conditions), baseline_seeds(sweeps)
    free = {n: s for n, s in shapes.items() if not any(row.is_baseline_of(s.d_sae, s.k, 0) for row in given)}
    architecture = one.parameters["baseline"]["architecture"]
    trained = [(name, architecture, seed, s.d_sae, s.k) for name, s in free.items() for seed in seeds[name]]
    return [*((row.condition, row.architecture, 0, row.d_sae, row.k) for row in given), *trained]


def _measured(one: Audited, cycle: CycleParams, saes: dict[str, list[Sae]]) -> Iterator[Check]:
    """The SAEs of each step, each with weights of its own and with all its probes and ceilings."""
    rows, at = one.tables.rows, ("data_set", "at", "duplicates", "split")
    ats, names = {*_values(rows("baselines", "probes"), *at)}, cycle.texts.probing
    yield _in_any_order("data sets that are probed", {data_set for data_set, *_ in ats}, names)
    splits = range(cycle.probing.seed, cycle.probing.seed + cycle.probing.splits)
    forms = {("keep", cycle.probing.seed), *product(["drop"], splits)}
    yield _in_any_order("forms and splits of probes", {form[2:] for form in ats}, forms)
    for step, of in saes.items():
        members = rows(step, "members")
        yield f"SAEs of {step}", _values(members, "condition", "architecture", "seed", "d_sae", "k"), of
        weights = Counter(member.weights_sha256 for member in members)
        yield f"weights of several SAEs of {step}", [sha256 for sha256, n in weights.items() if n > 1], []
        probed = _values(rows(step, "probes"), "condition", "seed", *at)
        yield _in_any_order(f"probes of {step}", probed, ((sae[0], sae[2], *at) for sae, at in product(of, ats)))
        limits = _values(rows(step, "ceilings"), "condition", "seed", "data_set")
        yield _in_any_order(f"ceilings of {step}", limits, ((sae[0], sae[2], name) for sae, name in product(of, names)))


def _sweep(one: Audited, cycle: CycleParams, conditions: list[tuple[Condition, list[int]]]) -> Iterator[Check]:
    """The sweep of the consistency objective: its checkpoints, its weights, and its acceptance."""
    rows = one.tables.rows
    saes = [(condition.name, seed) for condition, seeds in conditions for seed in seeds]
    yield "checkpoints", _values(rows("consistency", "checkpoints"), "condition", "seed"), saes
    weights = [row.condition for row in rows("consistency", "sweep")]
    yield "weights of the sweep", weights, [condition.name for condition, _ in conditions]
    if not (sweep := cycle.consistency):
        return
    truth = [row.weight for row in rows("consistency", "known_truth")]
    yield "weights on known features", truth, sweep.lambdas
    stated = one.records["consistency"].summary["acceptance"]
    yield from follow("acceptance:", stated, acceptance(rows("consistency", "sweep"), sweep.acceptance))


def _references(one: Audited, trained: Groups) -> Iterator[Check]:
    """What each seed was aligned with: it says which seeds are related."""
    for step, groups in trained.items():
        dealt = {
            (condition.name, seed): condition.objective.reference_of(seeds, i)
            for condition, seeds in groups if condition.objective for i, seed in enumerate(seeds)
        }  # fmt: skip
        for row in one.tables.rows(step, "members"):
            must = dealt.get((row.condition, row.seed))
            yield f"reference of {step}/members {row.condition} {row.seed}", row.reference, must


def _pairs(one: Audited, trained: Groups) -> Iterator[Check]:
    """The pairs of seeds of every step; those of random decoders of the sweep and of the stress controls too."""
    pairs = {step: {condition.name: seeds for condition, seeds in of} for step, of in trained.items()}
    for condition, seeds in trained.get("consistency", ()):
        pairs["consistency"][random_of(condition.d_sae)] = seeds
    own = [member.seed for member in one.tables.candidate.members]
    pairs["stress"] = dict.fromkeys(_stressed(one), own)
    for step, of in pairs.items():
        made = _values(one.tables.rows(step, "pairs"), "of", "seed_a", "seed_b")
        yield _in_any_order(
            f"pairs of {step}", made, ((name, *pair) for name in of for pair in combinations(of[name], 2))
        )


def _stressed(one: Audited) -> list[str]:
    """The controls that need SAEs of their own and were run."""
    stress, names = one.parameters["stress"], control_names(one.parameters) if one.tables.candidate.members else []
    runs = [name for name in names if stress["transcoder" if name == "transcoder" else "random_model"]]
    return [name for name in runs if name not in PROBED]


def _controls(one: Audited, cycle: CycleParams) -> Iterator[Check]:
    """What the stress controls and the width study were run on."""
    rows, run, own = one.tables.rows, _stressed(one), [member.seed for member in one.tables.candidate.members]
    saes = product((name for name in run if name != "random_decoder"), own)
    yield _in_any_order("SAEs of controls", _values(rows("stress", "control_saes"), "control", "seed"), saes)
    models = [row.control for row in rows("stress", "controls") if row.control.startswith("random_model")]
    must = [name for model in models if model in run for name in (model, f"{model}_held_out")]
    yield "banks of controls", [row.bank for row in rows("stress", "banks")], must
    tasks = _values(rows("stress", "ood"), "task", "seed")
    yield _in_any_order("tasks of the OOD control", tasks, product(cycle.texts.ood, own) if tasks else ())
    yield "controls", [row.control for row in rows("stress", "controls")], control_names(one.parameters)
    study = cycle.contrastive.study
    grids = {"random": study.widths + study.random_widths, "trained": study.widths}
    shapes = [(of, cycle.seeds[0], d_sae, k) for of in grids for d_sae in grids[of] for k in study.ks]
    scored = _values(rows("baselines", "contrastive"), "origin", "seed", "d_sae", "k")
    yield "SAEs of the width study", scored, sorted(shapes)


def _inputs(one: Audited, cycle: CycleParams) -> Iterator[Check]:
    """Which data sets were read, for which banks, and how many story pairs."""
    texts, rows = cycle.texts, one.tables.rows
    tasks = {"probing": texts.probing} | ({"ood": texts.ood, "shifted": texts.ood} if cycle.stress.ood else {})
    of_tasks = [(role, name) for role, names in tasks.items() for name in names]
    read = _values(rows("activations", "sources"), "role", "data_set")
    drawn = {*product(["training"], texts.training), *product(["held_out", "validation"], texts.held_out)}
    yield _in_any_order("data sets of tasks", {*read} - drawn, of_tasks)
    yield "data sets that are listed twice", [source for source, n in Counter(read).items() if n > 1], []
    further = ["validation", "validation_stories"] if cycle.activations.validation_rows else []
    yield _in_any_order(
        "roles of data sets", {role for role, _ in read}, ["training", "held_out", *further[:1], *tasks]
    )
    of_transcoder = ["mlp_in", "mlp_out", "mlp_in_held_out"] if cycle.stress.transcoder else []
    banks = ["training", "held_out", "stories", *further, *of_transcoder, *map("/".join, of_tasks)]
    yield _in_any_order("banks of activations", [row.bank for row in rows("activations", "banks")], banks)
    pairs = one.records["activations"].summary["story_pairs"]
    yield "story pairs are at most max_rows", pairs <= cycle.contrastive.max_rows, True
