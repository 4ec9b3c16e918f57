"""Activations: from a language model and texts to banks of rows on disk.

In: model, texts and hooks from the parameters. Out: memory-mapped banks `[n, d_in]` (`banks`, filled by `extraction`).
The first room of the measuring wing: `saes` and `measures` import it; it imports evidence and parameters.
"""
