"""Decisions: from records to one candidate and a verdict.

In: rows of members, baselines and controls. Out: the selected group (`selection`), the release gates (`gates`) and the
comparison with earlier runs (`criteria`); `of_run` takes these decisions from the records of a run.
The first room of the judging wing: pure functions without torch, which `earlier`, `report` and `cycle` may know.
"""
