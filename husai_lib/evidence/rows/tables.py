"""The row class of every table. The package does not import it, as checking hashes does without numpy."""

from husai_lib.evidence.rows import consistency, controls, decided, earlier, measured, probes, scaling
from husai_lib.evidence.rows.base import Row

TABLES: dict[str, type[Row]] = {
    "sources": measured.SourceRow, "banks": measured.BankRow, "members": measured.MemberRow,
    "groups": measured.GroupRow, "probes": probes.ProbeRow, "pairs": measured.PairRow, "ceilings": probes.CeilingRow,
    "checkpoints": consistency.CheckpointRow, "sweep": consistency.SweepRow, "known_truth": consistency.TruthRow,
    "effects": scaling.EffectRow, "candidates": decided.CandidateRow, "controls": controls.ControlRow,
    "control_saes": controls.ControlSaeRow, "ood": controls.OodRow, "gates": decided.GateRow,
    "contrastive": measured.ContrastiveRow, "criteria": decided.CriterionRow, "replays": earlier.ReplayRow,
    "rule_changes": earlier.RuleChangeRow, "earlier_members": earlier.EarlierMemberRow,
    "earlier_groups": earlier.EarlierGroupRow, "earlier_sweep": earlier.EarlierSweepRow,
    "earlier_gates": earlier.EarlierGateRow, "caveats": earlier.CaveatRow,
}  # fmt: skip
