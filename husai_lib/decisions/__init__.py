"""Decisions: from records to one candidate and a verdict.

In: rows of members, baselines and controls. Out: the selected group (`selection`), the release gates (`gates`) and the
comparison with earlier runs (`criteria`); `of_run` makes these decisions from the records of a run.
Pure functions without torch: `earlier`, `report` and `cycle` import them, and no other room.
"""
