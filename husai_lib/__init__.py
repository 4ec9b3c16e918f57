"""HUSAI: may this sparse autoencoder be released, or does its evidence not hold up?"""

from husai_lib.evidence import open_step
from husai_lib.version import __version__

__all__ = ["__version__", "open_step"]
