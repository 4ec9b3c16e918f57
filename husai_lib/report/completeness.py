"""Whether a run holds everything that its parameters ask for, and nothing else: SAEs, groups, pairs, probes, tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

from husai_lib.decisions.acceptance import acceptance
from husai_lib.evidence.rows.base import GIVEN
from husai_lib.evidence.rows.consistency import random_of
from husai_lib.evidence.rows.controls import PROBED, control_names
from husai_lib.evidence.rows.scaling import EFFECTS_ON
from husai_lib.evidence.steps import condition_of, why_unconfirmed
from husai_lib.params.conditions import (
    Condition,
    baseline_name,
    baseline_seeds,
    baseline_shapes,
    is_baseline_name,
)
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.params.cycle import CycleParams
from husai_lib.params.sections import check
from husai_lib.report.checks import Audited, Check, follow

Groups = dict[str, list[tuple[Condition, list[int]]]]
"""The conditions of each step that trains groups, each with its seeds."""


def completeness(one: Audited) -> Iterator[Check]:
    """Which SAEs, groups, pairs, probes and tasks there must be by the parameters, no more and no less."""
    rows, cycle = one.tables.rows, check(CycleParams, one.parameters, "parameters.json")
    ats = {(probe.data_set, str(probe.at), probe.duplicates, probe.split) for probe in rows("baselines", "probes")}
    yield "data sets that are probed", sorted({at[0] for at in ats}), sorted(cycle.texts.probing)
    seed = cycle.probing.seed
    forms = {("keep", seed)} | {("drop", seed + n) for n in range(cycle.probing.splits)}
    yield "forms and splits of probes", sorted({at[2:] for at in ats}), sorted(forms)
    groups = {name: [(c, seeds) for c in conditions] for name, (conditions, seeds) in cycle.trained.items()}
    if cycle.scaling:
        groups["scaling"] = [(one, cycle.scaling.seeds or cycle.seeds) for one in cycle.scaling.conditions()]
    saes = {name: [_sae(c, seed) for c, seeds in of for seed in seeds] for name, of in groups.items()}
    saes["baselines"] = _baselines(one, "baselines", [*cycle.trained.values()])
    saes["scaling"] = saes.get("scaling", []) + [
        _sae(_baseline_of(c, cycle.baseline.architecture), seed)
        for c, seeds in groups.get("scaling", ()) for seed in seeds
    ]  # fmt: skip
    confirmed = _confirmed(one)
    saes["confirmation"] = confirmed
    for step, of in saes.items():
        yield from _measured(one, step, of, ats)
    fresh = list(dict.fromkeys(sae[0] for sae in confirmed if not is_baseline_name(sae[0])))
    names = {step: [c.name for c, _ in of] for step, of in groups.items()} | {"confirmation": fresh}
    for step, must in names.items():
        yield f"conditions of groups of {step}", [g.condition for g in rows(step, "groups")], must
    yield from _sweep(one, cycle.consistency, groups.get("consistency", []))
    yield from _references(one, groups)
    yield from _pairs(one, groups, fresh)
    if cycle.scaling:
        yield (
            "effects",
            [(row.metric, row.of) for row in rows("scaling", "effects")],
            [(metric, of) for metric in EFFECTS_ON for of in cycle.scaling.effects()],
        )
    yield from _inputs(one)


def _sae(condition: Condition, seed: int) -> tuple[Any, ...]:
    return (condition.name, condition.architecture, seed, condition.d_sae, condition.k)


def _baseline_of(condition: Condition, architecture: str) -> Condition:
    return condition.model_copy(update={"name": baseline_name(condition.name), "architecture": architecture})


def _measured(one: Audited, step: str, saes: list[tuple[Any, ...]], ats: set[tuple[Any, ...]]) -> Iterator[Check]:
    """The SAEs of a step, each with weights of its own and with all its probes and ceilings."""
    rows = one.tables.rows
    members = rows(step, "members")
    yield f"SAEs of {step}", [(m.condition, m.architecture, m.seed, m.d_sae, m.k) for m in members], saes
    weights = Counter(member.weights_sha256 for member in members)
    yield f"weights of several SAEs of {step}", [sha256 for sha256, n in weights.items() if n > 1], []
    probed = sorted((p.condition, p.seed, p.data_set, str(p.at), p.duplicates, p.split) for p in rows(step, "probes"))
    yield f"probes of {step}", probed, sorted((sae[0], sae[2], *at) for sae, at in product(saes, ats))
    limits = sorted((row.condition, row.seed, row.data_set) for row in rows(step, "ceilings"))
    names = one.parameters["texts"]["probing"]
    yield f"ceilings of {step}", limits, sorted((sae[0], sae[2], name) for sae, name in product(saes, names))


def _pairs(one: Audited, groups: Groups, fresh: list[str]) -> Iterator[Check]:
    """The pairs of seeds of every step, and what the stress controls and the width study were run on."""
    rows, asked = one.tables.rows, one.parameters
    own = [member.seed for member in one.tables.candidate.members]
    switches = {name: "transcoder" if name == "transcoder" else "random_model" for name in control_names(asked)}
    run = [name for name, switch in switches.items() if own and asked["stress"][switch] and name not in PROBED]
    pairs = {step: {c.name: seeds for c, seeds in of} for step, of in groups.items()}
    for condition, seeds in groups.get("consistency", ()):
        pairs["consistency"][random_of(condition.d_sae)] = seeds
    pairs |= {"stress": dict.fromkeys(run, own), "confirmation": dict.fromkeys(fresh, own)}
    for step, of in pairs.items():
        made = sorted((row.of, row.seed_a, row.seed_b) for row in rows(step, "pairs"))
        yield f"pairs of {step}", made, sorted((name, *pair) for name in of for pair in combinations(of[name], 2))
    trained = [name for name in run if name != "random_decoder"]
    of_controls = sorted((sae.control, sae.seed) for sae in rows("stress", "control_saes"))
    yield "SAEs of controls", of_controls, sorted(product(trained, own))
    models = [row.control for row in rows("stress", "controls") if row.control.startswith("random_model")]
    must = [name for model in models if model in run for name in (model, f"{model}_held_out")]
    yield "banks of controls", [row.bank for row in rows("stress", "banks")], must
    tasks = sorted((row.task, row.seed) for row in rows("stress", "ood"))
    yield "tasks of the OOD control", tasks, sorted(product(asked["texts"]["ood"], own)) if tasks else []
    yield "controls", [row.control for row in rows("stress", "controls")], control_names(asked)
    study = asked["contrastive"]["study"]
    grids = {"random": study["widths"] + study["random_widths"], "trained": study["widths"]}
    first = asked["seeds"][0]
    shapes = sorted((origin, first, d_sae, k) for origin in grids for d_sae in grids[origin] for k in study["ks"])
    scored = [(row.origin, row.seed, row.d_sae, row.k) for row in rows("baselines", "contrastive")]
    yield "SAEs of the width study", scored, shapes


def _sweep(
    one: Audited, sweep: ConsistencyParams | None, conditions: list[tuple[Condition, list[int]]]
) -> Iterator[Check]:
    """The sweep of the consistency objective: its checkpoints, its weights, and its acceptance."""
    rows, groups = one.tables.rows, [condition.name for condition, _ in conditions]
    saes = [(condition.name, seed) for condition, seeds in conditions for seed in seeds]
    yield "checkpoints", [(row.condition, row.seed) for row in rows("consistency", "checkpoints")], saes
    yield "weights of the sweep", [row.condition for row in rows("consistency", "sweep")], groups
    if not sweep:
        return
    truth = [row.weight for row in rows("consistency", "known_truth")]
    yield "weights on known features", truth, sweep.lambdas
    stated = one.records["consistency"].summary["acceptance"]
    yield from follow("acceptance:", stated, acceptance(rows("consistency", "sweep"), sweep.acceptance))


def _references(one: Audited, trained: Groups) -> Iterator[Check]:
    """What each seed was aligned with, of `trained` conditions and of the confirmed one: it says which are related."""
    chosen, fresh = one.records["selection"].summary["selected"], one.parameters["confirmation"]["seeds"]
    if not why_unconfirmed(chosen, fresh, one.run.find_record):
        trained = trained | {"confirmation": [(condition_of(chosen, one.run.find_record), fresh)]}
    for step, groups in trained.items():
        dealt = {
            (condition.name, seed): condition.objective.reference_of(seeds, i)
            for condition, seeds in groups if condition.objective for i, seed in enumerate(seeds)
        }  # fmt: skip
        for row in one.tables.rows(step, "members"):
            must = dealt.get((row.condition, row.seed))
            yield f"reference of {step}/members {row.condition} {row.seed}", row.reference, must


def _inputs(one: Audited) -> Iterator[Check]:
    """Which data sets were read, for which banks, and how many story pairs."""
    texts, stress, rows = one.parameters["texts"], one.parameters["stress"], one.tables.rows
    tasks = {"probing": texts["probing"]} | ({"ood": texts["ood"], "shifted": texts["ood"]} if stress["ood"] else {})
    read = [(row.role, row.data_set) for row in rows("activations", "sources")]
    drawn = {(role, name) for role in ("training", "held_out") for name in texts[role]}
    drawn |= {("validation", name) for name in texts["held_out"]}
    of_tasks = [(role, name) for role in tasks for name in tasks[role]]
    yield "data sets of tasks", sorted({*read} - drawn), sorted(of_tasks)
    yield "data sets that are listed twice", [source for source, n in Counter(read).items() if n > 1], []
    further = {"validation"} if one.parameters["activations"]["validation_rows"] else set()
    yield "roles of data sets", sorted({role for role, _ in read}), sorted({"training", "held_out", *further, *tasks})
    of_transcoder = ("mlp_in", "mlp_out", "mlp_in_held_out") if stress["transcoder"] else ()
    of_validation = ("validation", "validation_stories") if further else ()
    banks = ["training", "held_out", "stories", *of_validation, *of_transcoder]
    made = [row.bank for row in rows("activations", "banks")]
    yield "banks of activations", sorted(made), sorted([*banks, *("/".join(task) for task in of_tasks)])
    pairs = one.records["activations"].summary["story_pairs"]
    yield "story pairs are at most max_rows", pairs <= one.parameters["contrastive"]["max_rows"], True


def _baselines(one: Audited, step: str, sweeps: list[tuple[list[Condition], list[int]]]) -> list[tuple[Any, ...]]:
    """The given SAE, if there is one, and a trained one for each seed and shape that it does not match."""
    given = [row for row in one.tables.rows(step, "members") if row.condition == GIVEN][:1]
    shapes, seeds = baseline_shapes(c for conditions, _ in sweeps for c in conditions), baseline_seeds(sweeps)
    free = {n: s for n, s in shapes.items() if not any(row.is_baseline_of(s.d_sae, s.k, 0) for row in given)}
    architecture = one.parameters["baseline"]["architecture"]
    trained = [(name, architecture, seed, s.d_sae, s.k) for name, s in free.items() for seed in seeds[name]]
    return [*((row.condition, row.architecture, 0, row.d_sae, row.k) for row in given), *trained]


def _confirmed(one: Audited) -> list[tuple[Any, ...]]:
    """The selected condition and its baselines at the confirmation seeds; nothing where the run cannot train them."""
    chosen, seeds = one.records["selection"].summary["selected"], one.parameters["confirmation"]["seeds"]
    if why_unconfirmed(chosen, seeds, one.run.find_record):
        return []
    condition = condition_of(chosen, one.run.find_record)
    own = [(condition.name, condition.architecture, seed, condition.d_sae, condition.k) for seed in seeds]
    return own + _baselines(one, "confirmation", [([condition], seeds)])
