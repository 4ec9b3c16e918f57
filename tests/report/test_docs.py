"""The documentation: generated pages are current, links lead somewhere, every command is described."""

import re
import runpy
from pathlib import Path

import pytest
import typer
import yaml

from husai_lib.cli import app
from husai_lib.files import REPOSITORY

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("benchmarks/*.md")])
GENERATE = runpy.run_path(str(REPOSITORY / "docs" / "generate_parameters.py"))
PAGE = GENERATE["page"]()


def test_the_page_of_parameters_is_what_the_models_give_now() -> None:
    committed = (REPOSITORY / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert committed == PAGE, "run 'make docs'"


@pytest.mark.parametrize(
    "line",
    [
        "| `d_sae` | integer > 0 | required | Number of latents. |",
        '| `precision` | `float32`, `tf32` or `bfloat16` | `"float32"` | ',
        "| `max_norm_ratio` | number > 1 or `null` | `null` | ",
        "| `widths` | list of number > 0, ≤ 1 | `[0.0625, 0.125, 0.25, 0.5, 1.0]` |\n",
        "### contrastive.study\n",
        "RouteSAE: a router over the residual streams of several layers",
    ],
)
def test_the_page_of_parameters_states_type_default_and_meaning(line: str) -> None:
    assert line in PAGE


def test_every_parameter_has_a_meaning() -> None:
    sections, _ = PAGE.split("## Architectures")
    assert re.findall(r"(?m)^\| (`\w+`) .*\|\s+\|$", sections) == []
    assert sections.count("\n| `") > 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_of_documents_lead_to_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    addresses = [a for a in re.findall(r"\]\(([^)#\s]+)", text) if not a.startswith("http")]
    assert [address for address in addresses if not (path.parent / address).exists()] == []


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("docs/*.md")), ids=lambda path: path.stem)
def test_a_document_has_one_title_and_stays_within_the_site(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(re.findall(r"(?m)^# ", re.sub(r"(?s)```.*?```", "", text))) == 1
    assert all(re.fullmatch(r"[\w-]+\.(md|png)", address) for address in re.findall(r"\]\(([^)#\s]+)", text))


def options() -> set[tuple[str, str]]:
    """Every command and option of the command line but `--help`."""
    found, commands = set(), dict(typer.main.get_command(app).commands)
    commands |= {f"eval {name}": command for name, command in commands.pop("eval").commands.items()}
    for name, command in commands.items():
        long = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        found |= {(name, option) for option in long if option.startswith("--")} | {(name, "")}
    return found


def test_the_page_of_commands_names_every_command_and_option() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    assert {name for name, _ in options() if f"`husai {name}" not in text} == set()
    assert {option for _, option in options() if option and not re.search(rf"{option}\b", text)} == set()


def test_the_page_of_commands_names_no_option_that_does_not_exist() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) - {"--help"} <= {option for _, option in options()}
    assert set(re.findall(r"`husai (?:eval )?([a-z]+)\b", text)) <= {name.split()[-1] for name, _ in options()}


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_commits_are_checked_by_what_make_check_runs() -> None:
    [repository] = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    recipe = re.search(r"(?m)^lint: .*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    assert recipe
    steps = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in repository["hooks"]] == steps
