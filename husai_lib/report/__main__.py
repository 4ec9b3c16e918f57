"""Writes the pages of a checkout's evidence as documents for Quarto; `quarto render` runs this first."""

from husai_lib.files import REPOSITORY
from husai_lib.report.site import chosen_run, shown_runs, write_sources

if __name__ == "__main__":
    evidence = REPOSITORY / "evidence"
    shown = shown_runs(evidence)
    write_sources(REPOSITORY, shown, chosen_run(shown, evidence))
