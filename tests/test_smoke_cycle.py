"""The real smoke cycle, end to end and without a network: the committed numbers, a report.

What happens when it is killed or interrupted: see faults/.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults.disturbing import NO_NETWORK
from forging import derive_again, rewrite
from refresh_notebooks import REPOSITORY, cpu_kind
from stand_ins import husai

from husai_lib.activations.banks import open_bank
from husai_lib.evidence.runs import find_imports, find_run, find_runs
from husai_lib.params.scaling import point_of
from husai_lib.report.audit import audit_run

SMOKE = str(REPOSITORY / "params" / "smoke.yaml")
TOLERANCE = 0.1  # of a standardised number on another processor; on the same one the bytes must agree


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without any network interface, where this user may have that."""
    evidence = tmp_path_factory.mktemp("evidence")
    command = [*NO_NETWORK, str(Path(sys.executable).with_name("husai")), "run", SMOKE, "--evidence", str(evidence)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return find_run(evidence, "smoke")


@pytest.mark.timeout(600)
def test_the_cycle_ends_with_a_verdict_that_verifies(finished):
    assert finished.manifest()["pass_all"] is False
    assert audit_run(finished).problems == []


@pytest.mark.timeout(600)
def test_every_pair_and_weight_of_the_finished_run_is_checked_against_the_cache(finished):
    assert "cached files not here" not in audit_run(finished).unchecked


@pytest.mark.timeout(900)
def test_the_finished_run_is_reproduced_and_a_falsified_measurement_is_not(finished, tmp_path):
    evidence = finished.path.parent.parent
    said = husai("reproduce", finished.name, "--with-cache", "--json", "--evidence", evidence)
    assert (said.code, set(json.loads(said.out)["counts"])) == (0, {"equal"})
    shutil.copytree(finished.path, tmp_path / finished.name)
    forged = find_run(tmp_path, finished.name)

    def raised(record):
        for probe in record["tables"]["probes"]:
            probe["test_auc"] += 0.001

    rewrite(forged, "frontier", raised)
    derive_again(forged)
    assert audit_run(forged).problems == []
    said = husai("reproduce", forged.name, "--with-cache", "--json", "--evidence", tmp_path)
    assert said.code == 4
    places = {value["place"] for value in json.loads(said.out)["differing"]}
    assert {f"frontier.probes.{n}.test_auc" for n in range(24)} <= places
    assert not any(place.startswith(("activations.", "baselines.")) for place in places)


@pytest.mark.timeout(600)
def test_every_point_of_the_grid_is_measured_beside_its_own_baseline(finished):
    record = finished.record("scaling")
    members, banks = record.table("members"), {row.bank: row for row in record.table("banks")}
    baselines = {(row.condition, row.seed): row for row in members if row.is_baseline}
    saes = [row for row in members if not row.is_baseline]
    assert len(saes) == len(baselines) == 16
    for row in saes:
        own = baselines[f"baseline_{row.condition}", row.seed]
        assert (own.d_sae, own.k) == (row.d_sae, row.k)
        assert row.cebench_delta == row.cebench_interpretability - own.cebench_interpretability
    raw = {(point_of(row.condition)[0], row.data_set, row.split): row.llm_auc for row in record.table("probes")}
    of_first = [place[1:] for place in raw if place[0] == 0]
    assert any(raw[0, *place] != raw[1, *place] for place in of_first), "each layer has its own raw activation"
    for layer in (0, 1):
        budgets = [banks[f"layer_{layer}/training/{tokens}"] for tokens in (1024, 2048)]
        few, many = (open_bank(row.key, row.hook_name, row.sha256).rows for row in budgets)
        assert {row.hook_name for row in budgets} == {f"blocks.{layer}.hook_resid_post"}
        assert (len(few), len(many)) == (1024, 2048)
        assert np.array_equal(few, many[:1024]), "a smaller budget is the beginning of a larger one"


def without_keys(results):
    """Results without the keys of cache entries, which name the code that made them and change with every edit."""
    if isinstance(results, list):
        return [without_keys(value) for value in results]
    if isinstance(results, dict):
        return {name: without_keys(value) for name, value in results.items() if name != "key"}
    return results


@pytest.mark.timeout(600)
def test_numbers_are_the_committed_ones(finished):
    committed = json.loads((find_run(REPOSITORY / "evidence", "smoke").path / "results.json").read_text())
    new = json.loads((finished.path / "results.json").read_text())
    if (REPOSITORY / "tests" / "notebook_outputs_cpu.txt").read_text().strip() == cpu_kind():
        assert without_keys(new) == without_keys(committed)
    for row, known in zip(new["frontier"]["members"], committed["frontier"]["members"], strict=True):
        assert (row["condition"], row["seed"]) == (known["condition"], known["seed"])
        for number in ("explained_variance", "saebench_delta", "cebench_interpretability"):
            assert row[number] == pytest.approx(known[number], abs=TOLERANCE)


def test_committed_evidence_passes_the_audit_and_so_does_a_site_made_of_it(tmp_path, monkeypatch):
    committed = REPOSITORY / "evidence"
    runs = find_runs(committed)
    assert {run.path.parent.name for run in runs} >= {"smoke", "quickstart"}
    monkeypatch.chdir(tmp_path)  # where no older site lies
    said = husai("audit", "--evidence", committed)
    assert (said.code, said.err) == (0, ""), said.out
    audited = [line.partition(":")[0] for line in said.out.splitlines()]
    imports = [found.name for found in find_imports(committed)]
    assert audited == [*(run.name for run in runs), *imports, "beside the runs", "front page"]
    shutil.copytree(committed, tmp_path / "evidence")
    assert husai("render", "--evidence", tmp_path / "evidence", "--out", tmp_path / "site").code == 0
    said = husai("audit", "--evidence", tmp_path / "evidence", "--site", tmp_path / "site")
    assert (said.code, said.out.splitlines()[-1].endswith("no problem")) == (0, True), said.out


def test_committed_evidence_carries_no_weights():
    heavy = [p for p in (REPOSITORY / "evidence").rglob("*") if p.suffix in {".safetensors", ".npy", ".pt"}]
    assert heavy == []


def test_front_page_is_that_of_the_committed_evidence():
    from husai_lib.report.site import front_page, shown_runs

    shown = shown_runs(REPOSITORY / "evidence")
    newest = next(one for one in shown if one.run.is_complete and not one.facts["imported"])
    assert front_page(shown, newest) == (REPOSITORY / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "evidence").glob("*/*/notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_executed_notebooks_name_no_machine(path: Path):
    text = path.read_text(encoding="utf-8")
    assert str(REPOSITORY) not in text
    assert "/tmp/" not in text
