"""How thoroughly property tests search: `make check` sets HUSAI_TEST_EFFORT below 1, `make test` leaves it at 1."""

import os


def examples(number: int) -> int:
    """The number of examples of a property test, scaled by the effort."""
    return max(10, int(number * float(os.environ.get("HUSAI_TEST_EFFORT") or 1)))
