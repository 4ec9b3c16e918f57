"""What a step leaves: the columns of every table, with their units. This is the data dictionary.

Rows are flat. A value that is missing is null, and `note` says why. Columns that follow from other numbers of a run are
computed here, once, by `derived`: when a row is made, and again when it is audited.
"""

from __future__ import annotations

from husai_lib.evidence.rows.base import (
    CONTROLS,
    EARLIER_BASELINE,
    EARLIER_D_SAE,
    GIVEN,
    IMPORTED,
    MATCHED_WITHIN,
    Auc,
    Candidate,
    Cosine,
    Count,
    MeasuredRow,
    Row,
    RunTables,
    Share,
    Variance,
    ceiling,
    group_sha256,
    is_matched,
    noted,
)
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
from husai_lib.evidence.rows.measured import (
    BankRow,
    ContrastiveRow,
    GroupRow,
    MemberRow,
    PairRow,
    ProbeRow,
    SourceRow,
    mean_over_sets,
    pairs_of,
)

__all__ = [
    "CONTROLS",
    "EARLIER_BASELINE",
    "EARLIER_D_SAE",
    "GIVEN",
    "IMPORTED",
    "MATCHED_WITHIN",
    "TABLES",
    "Auc",
    "BankRow",
    "Candidate",
    "CandidateRow",
    "CaveatRow",
    "ContrastiveRow",
    "ControlRow",
    "ControlSaeRow",
    "Cosine",
    "Count",
    "CriterionRow",
    "EarlierGateRow",
    "EarlierGroupRow",
    "EarlierMemberRow",
    "EarlierSweepRow",
    "GateRow",
    "GroupRow",
    "MeasuredRow",
    "MemberRow",
    "OodRow",
    "PairRow",
    "ProbeRow",
    "ReplayRow",
    "Row",
    "RuleChangeRow",
    "RunTables",
    "Share",
    "SourceRow",
    "Variance",
    "ceiling",
    "group_sha256",
    "is_matched",
    "mean_over_sets",
    "noted",
    "pairs_of",
]

TABLES: dict[str, type[Row]] = {
    "sources": SourceRow, "banks": BankRow, "members": MemberRow, "groups": GroupRow, "probes": ProbeRow,
    "pairs": PairRow,
    "candidates": CandidateRow, "controls": ControlRow, "control_saes": ControlSaeRow, "ood": OodRow, "gates": GateRow,
    "contrastive": ContrastiveRow, "criteria": CriterionRow, "replays": ReplayRow, "rule_changes": RuleChangeRow,
    "earlier_members": EarlierMemberRow, "earlier_groups": EarlierGroupRow, "earlier_sweep": EarlierSweepRow,
    "earlier_gates": EarlierGateRow, "caveats": CaveatRow,
}  # fmt: skip
