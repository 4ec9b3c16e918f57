"""Measures: from trained SAEs to rows of records.

In: trained SAEs and banks. Out: rows on reconstruction, stability across seeds (`matching`), sparse probing, CE-Bench
(`contrastive`), matched baselines and stress controls. It measures and decides nothing.
The last room of the measuring wing: only notebooks and the command line know it.
"""
