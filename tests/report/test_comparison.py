"""What `husai compare` finds between committed runs, and what it refuses."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

import pytest

from husai_lib import cli
from husai_lib.evidence.runs import find_run
from husai_lib.files import REPOSITORY, read_json
from husai_lib.report.comparison import differences

EVIDENCE = REPOSITORY / "evidence"
IMPORT = "husai: imported/cycle3 is an import, which states too little to be compared; name runs\n"
CYCLES = ("smoke", "quickstart")


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], tuple[Any, ...]]:
    runs = [find_run(EVIDENCE, name) for name in CYCLES]
    return {(one.kind, one.what): one.values for one in differences(runs)}


def record(cycle: str, step: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(find_run(EVIDENCE, cycle).path / "records" / f"{step}.json")
    return content


def test_a_run_does_not_differ_from_itself() -> None:
    run = find_run(EVIDENCE, "smoke")
    assert differences([run, run, run]) == []


def test_parameters_that_differ_are_named_with_both_values_and_equal_ones_are_not(found: dict[Any, Any]) -> None:
    assert found["parameters", "sae.d_sae"] == (64, 256)
    assert found["parameters", "conditions.topk.d_sae"] == (64, 256)
    assert ("parameters", "sae.k") not in found  # 8 in both


def test_a_condition_that_only_one_run_has_is_told_by_the_list_of_conditions_alone(found: dict[Any, Any]) -> None:
    smoke, quickstart = found["parameters", "conditions"]
    assert "hierarchical_topk" in quickstart
    assert "hierarchical_topk" not in smoke
    assert not [what for _, what in found if what.startswith("conditions.hierarchical_topk")]


def test_metrics_are_means_over_the_seeds_of_a_condition(found: dict[Any, Any]) -> None:
    for value, cycle in zip(found["metrics", "frontier: topk explained_variance"], CYCLES, strict=True):
        rows = [row for row in record(cycle, "frontier")["tables"]["members"] if row["condition"] == "topk"]
        assert value == pytest.approx(fmean(row["explained_variance"] for row in rows))


def test_banks_and_gates_are_compared(found: dict[Any, Any]) -> None:
    hashes = [record(cycle, "activations")["tables"]["banks"][0]["sha256"][:12] for cycle in CYCLES]
    assert found["data", "training SHA-256"] == tuple(hashes)
    verdicts = [
        {row["gate"]: row["verdict"] for row in record(c, "gate")["tables"]["gates"]} for c in ("smoke", "quickstart")
    ]
    for gate in verdicts[0]:
        both = (verdicts[0][gate], verdicts[1][gate])
        assert found.get(("verdicts", f"{gate} verdict"), (both[0],) * 2) == both


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "smoke", "quickstart", "--json", "--evidence", str(EVIDENCE)])
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [name.split("/")[0] for name in printed["runs"]] == ["smoke", "quickstart"]
    assert {"kind": "parameters", "what": "sae.d_sae", "values": [64, 256]} in printed["differing"]


@pytest.mark.parametrize(
    ("names", "code", "sentence"),
    [
        (["smoke"], 2, "husai: there is nothing to compare one run with; name two runs or more\n"),
        (
            ["smoke", "imported/cycle3"],
            1,
            IMPORT,
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    names: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *names, "--evidence", str(EVIDENCE)])
    assert (ended.value.code, capsys.readouterr().err) == (code, sentence)
