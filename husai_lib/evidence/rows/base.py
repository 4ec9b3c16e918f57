"""What all rows share: notes, derived columns, and the tables that these follow from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field

from husai_lib.files import canonical_json, sha256_text
from husai_lib.params.sections import Section

MATCHED_WITHIN = 0.10
IMPORTED = "imported"
"""The folder of `evidence/` that holds records of earlier cycles, in place of a cycle's name."""
GIVEN = "given"
"""The condition of the SAE that the parameters name as a baseline, in the tables of the step `baselines`."""
CONTROLS = ("random_model", "random_decoder", "transcoder", "in_domain", "ood")
"""The gates on stress controls, in the order in which tables have them."""
ERROR_RATE = 0.025
"""How often a gate may pass a group whose true value only equals the threshold: one side of a 95 % interval."""
EARLIER_BASELINE, EARLIER_D_SAE = 47.95, 32768
"""CE-Bench interpretability that the gate of earlier cycles asked for: that of a public SAE, and its width."""


def is_matched(value: float, target: float) -> bool:
    """Whether a width or an L0 is matched: an SAE's L0 with its target k, the baseline's with the candidate's."""
    return round(abs(value / target - 1), 9) <= MATCHED_WITHIN  # 1.1 - 1 > 0.1 in floats


def ceiling(d_sae: int) -> float:
    """The largest `max z` of N numbers, and so CE-Bench score of N latents: `(N - 1) / sqrt(N)`, if one differs."""
    return float((d_sae - 1) / d_sae**0.5)


def shared_level(groups: int) -> float:
    """The confidence of intervals over what one of `groups` was chosen by: they share the error rate (Bonferroni)."""
    return 1 - 2 * ERROR_RATE / max(1, groups)


def group_sha256(weights: Iterable[tuple[int, str]]) -> str:
    """One hash of a group's weights, given the seed and the SHA-256 of each."""
    return sha256_text(canonical_json(sorted(weights)))


Auc = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=0, le=1)]
Similarity = Annotated[float, Field(ge=-1, le=1)]
Variance = Annotated[float, Field(le=1)]


@dataclass(frozen=True)
class Candidate:
    """The group that goes through the stress controls and the gate."""

    members: Sequence[Any] = ()
    """Those of the confirmation seeds, else those that were selected."""
    pairs: Sequence[Any] = ()
    why_none: str = "no candidate was selected"
    """Why it has no members that can be stressed in this run; empty if it has."""
    level: float = 1 - 2 * ERROR_RATE
    """The confidence of its gates' two-sided intervals; see `steps.levels_of`."""


@dataclass(frozen=True)
class RunTables:
    """The typed tables of a run and its parameters: what derived columns follow from."""

    tables: Mapping[tuple[str, str], Sequence[Any]]
    """Rows by step and table."""
    parameters: Mapping[str, Any]
    """The sections of the cycle."""
    candidate: Candidate = Candidate()

    def rows(self, step: str, table: str, **columns: Any) -> list[Any]:
        """The rows of a table that have these values; none where there is no such table."""
        found = self.tables.get((step, table), ())
        return [row for row in found if all(getattr(row, name) == value for name, value in columns.items())]


def minus(a: float | None, b: float | None) -> float | None:
    """The difference of two values; None where either is missing."""
    return None if a is None or b is None else a - b


def noted(notes: Mapping[str, bool]) -> str:
    """The notes that apply, joined."""
    return "; ".join(note for note, applies in notes.items() if note and applies)


class Row(Section):
    """One row of a table."""

    note: str = ""
    """Why a value is missing or cannot be compared; empty where nothing is to be said."""

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- rows with such columns use them
        """Every column that follows from other numbers of the run; `step` is that of the row's record."""
        return {}


class MeasuredRow(Row):
    """A row that the measuring wing made; it carries a note only where `_derived` says which."""

    @classmethod
    def derive(cls, step: str, run: RunTables, **measured: Any) -> Self:
        """The row of what was measured, its other columns derived from it and from tables of the run."""
        return cls(**measured | cls.model_construct(**measured).derived(step, run))

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """Every column that follows from other numbers of the run, the note included."""
        return {"note": ""} | self._derived(step, run)

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- as above
        return {}
