"""Confirmation: which condition is trained again at fresh seeds, and why none is.

A group that was chosen because its numbers are high is partly lucky, and its own numbers cannot tell. Seeds that took
no part in the choice can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from husai_lib.evidence.steps import Read, selected_group
from husai_lib.params.conditions import Condition


def condition_of(selected: Mapping[str, Any], read: Read) -> Condition:
    """The selected condition with all its hyperparameters; `read` gives the record that the selection names."""
    given = {one["name"]: one for one in read(selected["source"]).data["parameters"]["conditions"]}
    return Condition(**given[selected["condition"]])


def why_unconfirmed(selected: Mapping[str, Any] | None, seeds: Sequence[int], read: Read) -> str:
    """Why no fresh seeds are trained; empty where they are."""
    group = selected_group(selected, read)
    taken = sorted({*seeds} & {member.seed for member in group.members})
    if not seeds:
        return "the parameters name no confirmation seeds"
    return group.why_none or (f"it was selected at seed {taken[0]}, which therefore confirms nothing" if taken else "")
