"""What a step leaves: the columns of every table, with their units. This is the data dictionary.

Rows are flat. A value that is missing is null, and `note` says why. Columns that follow from other numbers of a run are
computed here, once, by `derived`: when a row is made, and again when it is audited.
"""

from __future__ import annotations

from husai_lib.evidence.rows.base import Row
from husai_lib.evidence.rows.consistency import CheckpointRow, SweepRow, TruthRow
from husai_lib.evidence.rows.controls import ControlRow, ControlSaeRow, OodRow
from husai_lib.evidence.rows.decided import CandidateRow, CriterionRow, GateRow
from husai_lib.evidence.rows.earlier import (
    CaveatRow,
    EarlierGateRow,
    EarlierGroupRow,
    EarlierMemberRow,
    EarlierSweepRow,
    ReplayRow,
    RuleChangeRow,
)
from husai_lib.evidence.rows.measured import BankRow, ContrastiveRow, GroupRow, MemberRow, PairRow, SourceRow
from husai_lib.evidence.rows.probes import CeilingRow, ProbeRow
from husai_lib.evidence.rows.scaling import EffectRow

TABLES: dict[str, type[Row]] = {
    "sources": SourceRow, "banks": BankRow, "members": MemberRow, "groups": GroupRow, "probes": ProbeRow,
    "pairs": PairRow, "ceilings": CeilingRow, "checkpoints": CheckpointRow, "sweep": SweepRow, "known_truth": TruthRow,
    "effects": EffectRow,
    "candidates": CandidateRow, "controls": ControlRow, "control_saes": ControlSaeRow, "ood": OodRow, "gates": GateRow,
    "contrastive": ContrastiveRow, "criteria": CriterionRow, "replays": ReplayRow, "rule_changes": RuleChangeRow,
    "earlier_members": EarlierMemberRow, "earlier_groups": EarlierGroupRow, "earlier_sweep": EarlierSweepRow,
    "earlier_gates": EarlierGateRow, "caveats": CaveatRow,
}  # fmt: skip
