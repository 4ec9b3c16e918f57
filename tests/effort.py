"""How thoroughly tests search: `make check` sets HUSAI_TEST_EFFORT below 1, `make faults` sets HUSAI_FAULTS to full."""

import os


def examples(number: int) -> int:
    """The number of examples of a property test, scaled by the effort."""
    return max(10, int(number * float(os.environ.get("HUSAI_TEST_EFFORT") or 1)))


def times(full: int, short: int) -> int:
    """How often a fault is repeated: `full` times by `make faults`, which sets HUSAI_FAULTS; else `short` times."""
    return full if os.environ.get("HUSAI_FAULTS") == "full" else short
