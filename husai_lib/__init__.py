"""HUSAI: whether a sparse autoencoder may be released, or its evidence does not hold up."""

import os

# Progress bars of the libraries are noise in a report; steps report their own progress. Read at import.
for _name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from husai_lib.evidence.steps import open_step  # noqa: E402 - after the settings above
from husai_lib.version import __version__  # noqa: E402

__all__ = ["__version__", "open_step"]
