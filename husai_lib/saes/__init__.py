"""Sparse autoencoders: from banks of activations to trained SAEs in SAELens' format.

In: conditions, seeds and a bank. Out: trained SAEs (`trained`), each a SAELens folder with its own encoder.
`architectures` holds one file an architecture, `stack` the training loop, `training` whole banks of members.
Part of the measuring wing: `measures` may know it; it knows activations, evidence and parameters.
"""
