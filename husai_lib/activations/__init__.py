"""Activations: from a language model and texts to banks of rows on disk.

In: model, texts and hooks from the parameters. Out: memory-mapped banks `[n, d_in]` (`banks`, made by `extraction`).
The first room of the measuring wing: `saes` and `measures` build on it; it knows evidence and parameters.
"""
