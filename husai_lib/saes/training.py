"""Training of a bank: all its members, from the cache or together in stacks."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from husai_lib.activations.banks import Bank
from husai_lib.errors import DataError
from husai_lib.evidence.cache import cache_folder, cached, code_hash, is_cached, key_of
from husai_lib.files import canonical_json, sha256_text
from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures import TrainableSae
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack, stacks_of
from husai_lib.saes.trained import Member, TrainedSae
from husai_lib.tasks import Progress, device, run_tasks, workers

References = dict[str, TrainedSae]
"""Frozen references, by what identifies them."""


def members(conditions: Sequence[Condition], seeds: Sequence[int]) -> list[Member]:
    """Every condition at every seed; with a consistency objective, seeds are dealt to its references in turn."""
    return [_dealt(condition, seeds, i) for condition in conditions for i in range(len(seeds))]


def _dealt(condition: Condition, seeds: Sequence[int], i: int) -> Member:
    if not (objective := condition.objective):
        return Member(condition, seeds[i])
    return Member(condition, seeds[i], objective.reference_of(seeds, i), objective.bank_of(seeds, i))


def train_bank(
    bank_members: Sequence[Member], rows: Bank, target: Bank | None = None, progress: Progress | None = None
) -> list[TrainedSae]:
    """Train the members on the same rows, each with the initial weights and the data order of its seed.

    With `target` the SAEs map `rows` to `target` (transcoders). A member that is in the cache is not trained again, and
    one whose training was killed resumes from its last checkpoint. A member has the same metrics alone or in a bank,
    and on a CPU also the same weights. Raises DataError if training diverges.
    """
    data = Data.of(rows, target)
    references = _references(bank_members, rows, target, progress)
    stacks = stacks_of(bank_members, rows.shape[1], data.target.shape[1], device(), workers())
    tasks = [[bank_members[i] for i in stack] for stack in stacks]
    function = functools.partial(_trained, data=data, references=references)
    trained = run_tasks(function, tasks, "members trained", progress)
    saes = dict(zip(itertools.chain(*stacks), itertools.chain(*trained), strict=True))
    return [saes[i] for i in range(len(bank_members))]


def frozen_references(bank_members: Sequence[Member], rows: Bank) -> list[TrainedSae | None]:
    """The frozen reference of each member, from the cache or trained on `rows`; None for a member without one."""
    references = _references(bank_members, rows, None, None)
    return [references.get(_reference_of(member)) for member in bank_members]


def _references(
    bank_members: Sequence[Member], rows: Bank, target: Bank | None, progress: Progress | None
) -> References:
    """The frozen references of the members: SAEs of the same conditions without objective, at other seeds."""
    wanted = {name: m for m in bank_members if (name := _reference_of(m))}
    plain = [Member(m.condition.model_copy(update={"consistency": None}), m.reference or 0) for m in wanted.values()]
    return dict(zip(wanted, train_bank(plain, rows, target, progress), strict=True)) if wanted else {}


def _reference_of(member: Member) -> str:
    """What identifies the frozen reference of a member; empty where it has none."""
    if member.reference is None or member.bank:
        return ""
    return canonical_json([member.condition.model_dump(exclude={"name", "consistency"}), member.reference])


def _trained(stack: Sequence[Member], data: Data, references: References) -> list[TrainedSae]:
    """The members of a stack; those that are not in the cache are trained together."""
    inputs = [_inputs(member, data, references) for member in stack]
    missing = [i for i, given in enumerate(inputs) if not is_cached("saes", __name__, given)]
    if missing and stack[0].bank:
        missing = list(range(len(stack)))  # they depend on each other
    saes = dict(zip(missing, _train([stack[i] for i in missing], data, references), strict=True)) if missing else {}
    hook_out = data.target.hook_name if data.target is not data.rows else None

    def make(folder: Path, i: int) -> None:
        metadata = {"hook_name": data.rows.hook_name, "hook_name_out": hook_out, "seed": stack[i].seed}
        saes[i].export(data.scale_in, data.scale_out, metadata).save_model(folder)

    entries = [cached("saes", __name__, given, functools.partial(make, i=i)) for i, given in enumerate(inputs)]
    return [TrainedSae(member, entry) for member, entry in zip(stack, entries, strict=True)]


def _train(stack: Sequence[Member], data: Data, references: References) -> list[TrainableSae]:
    key = sha256_text(canonical_json([key_of(__name__, _inputs(member, data, references)) for member in stack]))
    checkpoint = cache_folder() / "checkpoints" / f"{key}.safetensors"
    given = [references[name] for member in stack if (name := _reference_of(member))]
    saes = Stack(stack, data, device(), references=[one.sae.W_dec.detach() for one in given]).train(checkpoint)
    checkpoint.unlink(missing_ok=True)
    for member, sae in zip(stack, saes, strict=True):
        if not all(torch.isfinite(p.norm()) for p in sae.parameters()):
            raise DataError(f"training of {member} diverged; lower its learning_rate")
    return saes


def _inputs(member: Member, data: Data, references: References) -> dict[str, Any]:
    architecture, objective = member.condition.architecture, member.condition.objective
    reference = references.get(_reference_of(member))
    return {
        "condition": member.condition.model_dump(exclude={"name", "consistency"}),
        "objective": objective and [objective.weight, objective.assignment_interval],
        "aligned_with": reference.weights_sha256 if reference else member.bank,
        "seed": member.seed,
        "rows": [data.rows.hook_name, data.rows.sha256],
        "target": [data.target.hook_name, data.target.sha256],
        "architecture_code": code_hash(f"husai_lib.saes.architectures.{architecture}"),
        "device": device(),
    }
