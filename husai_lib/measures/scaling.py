"""Phase 4e: one condition over layers, token budgets and widths, each point beside a matched baseline of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import gaussian_bank, prompt_banks, text_bank
from husai_lib.activations.language_model import LanguageModel
from husai_lib.activations.texts import drawn_texts, probing_set, story_pairs, texts_of_pairs
from husai_lib.evidence.rows.base import Row, RunTables
from husai_lib.evidence.rows.scaling import EFFECTS_ON, EffectRow
from husai_lib.measures.evaluation import Benches, group_rows, member_rows
from husai_lib.measures.probing import probe_tasks
from husai_lib.params.conditions import baseline_name
from husai_lib.params.inputs import ActivationParams
from husai_lib.params.scaling import ScalingParams, point_of
from husai_lib.saes.baseline import train_baseline
from husai_lib.saes.trained import TrainedSae
from husai_lib.saes.training import members, train_bank
from husai_lib.tasks import Progress

Tables = dict[str, list[Any]]
LARGEST = "training"
"""The bank of the largest token budget; those of the others have their budget behind the name."""


def read_layer(
    model: LanguageModel, sections: Any, at: ActivationParams, progress: Progress | None = None
) -> dict[str, Bank]:
    """The banks of one layer by name, of the step's parameters; all budgets have the norm limit of the largest."""
    texts, hooks = sections.texts, [at.hook_name]
    drawn = drawn_texts(texts.training, at.seed)
    largest = text_bank(model, drawn, at, hooks, at.training_rows, progress=progress)
    limit = largest.meta["norm_limit"]
    banks = {
        f"{LARGEST}/{tokens}": text_bank(model, drawn, at, hooks, tokens, norm_limit=limit)
        for tokens in sections.scaling.tokens[:-1]
    }
    banks[f"{LARGEST}/{at.training_rows}"] = largest
    banks["held_out"] = text_bank(
        model, drawn_texts(texts.held_out, at.seed), at, hooks, at.held_out_rows, norm_limit=limit, progress=progress
    )
    whole = at.model_copy(update={"context_tokens": at.probe_tokens})
    pairs = story_pairs(texts.stories, sections.contrastive.max_rows)
    banks["stories"] = text_bank(model, texts_of_pairs(pairs), whole, hooks, norm_limit=limit)
    prompts = prompt_banks(model, [probing_set(name) for name in texts.probing], at, progress)
    return banks | {f"probing/{name}": bank for name, bank in zip(texts.probing, prompts, strict=True)}


def grid_tables(
    sections: Any, layers: Mapping[int, Mapping[str, Bank]], progress: Progress | None = None
) -> dict[str, list[Any]]:
    """Every point trained and measured beside its baseline: all tables of the step but the effects.

    `sections` are the step's parameters, `layers` the banks of `read_layer` by layer. With several seeds, the nulls are
    those of the frontier: random decoders, and the same recipe on Gaussian activations.
    """
    grid, seeds = sections.scaling, sections.scaling.seeds or sections.seeds
    measured = ("members", "probes", "ceilings")
    tables: Tables = {name: [] for name in (*measured, "groups", "pairs", "banks")}
    of_baselines: Tables = {name: [] for name in measured}
    for layer, banks in layers.items():
        tasks = probe_tasks(sections.texts.probing, banks, sections.probing)
        benches = Benches(banks["held_out"], banks["stories"], tasks, sections.probing, sections.contrastive)
        saes: list[TrainedSae] = []
        nulls: list[TrainedSae] = []
        baselines: list[TrainedSae] = []
        for tokens in grid.tokens:
            rows = banks[f"{LARGEST}/{tokens}"]
            here = [one for one in grid.conditions() if point_of(one.name)[:2] == (layer, tokens)]
            saes += train_bank(members(here, seeds), rows, progress=progress)
            if len(seeds) > 1:
                nulls += train_bank(members(here, seeds), gaussian_bank(rows), progress=progress)
            for one in here:
                name = baseline_name(one.name)
                baselines += train_baseline(sections.baseline, one, seeds, rows, progress, name=name)
        compared: tuple[list[Any], ...] = member_rows(baselines, benches, "scaling", progress=progress)
        own = member_rows(saes, benches, "scaling", compared[0], progress)
        groups = group_rows(saes, nulls, *own, held_out=banks["held_out"], step="scaling")
        named = [bank.row(f"layer_{layer}/{name}") for name, bank in banks.items()]
        made: list[list[Any]] = [*own, *groups, named]
        for name, table in zip(tables, made, strict=True):
            tables[name] += table
        for name, table in zip(of_baselines, compared, strict=True):
            of_baselines[name] += table
    return tables | {name: tables[name] + rows for name, rows in of_baselines.items()}


def effect_rows(tables: Mapping[str, Sequence[Row]], parameters: Mapping[str, Any]) -> list[EffectRow]:
    """What every axis and every pair of axes does to every metric, from the other tables of the step."""
    run = RunTables({("scaling", name): rows for name, rows in tables.items()}, parameters)
    names = ScalingParams.model_validate(parameters["scaling"]).effects()
    return [EffectRow.derive("scaling", run, metric=metric, of=name) for metric in EFFECTS_ON for name in names]
