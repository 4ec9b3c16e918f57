"""Writes the pages of a checkout's evidence as documents for Quarto; `quarto render` runs this first."""

from husai_lib.files import REPOSITORY
from husai_lib.report.site import chosen_run, write_sources
from husai_lib.report.site_audit import banner_of

if __name__ == "__main__":
    evidence = REPOSITORY / "evidence"
    write_sources(REPOSITORY, evidence, chosen_run(evidence), banner_of)
