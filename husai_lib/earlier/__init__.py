"""Earlier cycles: records of 2026-02, imported as they were, with what is known to be wrong with them.

In: JSON files of that time. Out: an import under `evidence/imported/` (`imports`), its caveats, and its selections
repeated by their own rules and by today's (`replay`).
Part of the judging wing: `report` and `cycle` may know it; it knows decisions, evidence and parameters.
"""
