"""Earlier cycles: records of February 2026, imported as they are, with what is known to be wrong with them.

In: JSON files of that time. Out: an import under `evidence/imported/` (`imports`) with typed rows (`records`) and
caveats (`caveats`), and its selections repeated by their own rules and by today's (`replay`).
Part of the judging wing: `report` and `cycle` may know it; it knows decisions, evidence and parameters.
"""
