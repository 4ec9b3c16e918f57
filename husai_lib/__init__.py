"""HUSAI: may this sparse autoencoder be released, or does its evidence not hold up?"""

import os

# Progress bars of the libraries are noise in a report; steps report their own progress. Read at import.
for _name, _value in {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
    os.environ.setdefault(_name, _value)

from husai_lib.evidence import open_step  # noqa: E402 - after the settings above
from husai_lib.version import __version__  # noqa: E402

__all__ = ["__version__", "open_step"]
