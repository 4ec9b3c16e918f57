"""Sparse autoencoders: from banks of activations to trained SAEs in SAELens' format.

In: conditions, seeds and a bank. Out: trained SAEs (`trained`), each a SAELens folder with its own encoder.
`architectures` holds one file for each architecture, `stack` the training loop, `training` the training of a bank,
`baseline` SAELens' own recipe, and `assignment` the exact matching of two dictionaries. Part of the
measuring wing: `measures` imports it; it imports activations, evidence and parameters.
"""
