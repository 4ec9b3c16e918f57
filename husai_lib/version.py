"""The version, alone in a module so that packaging tools need not import the library."""

__version__ = "0.1.0"
