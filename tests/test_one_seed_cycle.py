"""A real cycle of one seed with a further sweep and a grid: verdict, audit, page, and what a forger tries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from forging import Change, copied, fast_audits, rewrite, show_again
from stand_ins import husai, smoke_data, write_params

from husai_lib.evidence.runs import Run, find_run
from husai_lib.params.scaling import name_of
from husai_lib.report.audit import audit_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TOPK = {"architecture": "topk"}
POINTS = [*map(name_of, product((0, 1), (256, 1024), (32, 64)))]


def parameters() -> dict[str, Any]:
    """The smoke cycle at one seed: one condition, a further sweep, eight points of a grid, no fresh seeds."""
    data = smoke_data(
        cycle="one_seed", seeds=[42], conditions=[TOPK], confirmation={}, earlier=[],
        sweeps={"routed": {"conditions": [{"architecture": "routed_topk", "num_experts": 4}]}},
        scaling={"condition": TOPK, "tokens": [256, 1024], "hook_layers": [0, 1], "d_sae": [32, 64]},
        selection={"sources": ["frontier", "routed"], "mode": "mean", "min_seeds": 1, "require_matched_l0": False},
        probing={"ks": [1, 2], "splits": 1},
    )  # fmt: skip
    del data["consistency"]
    data["activations"] |= {"training_rows": 2048, "held_out_rows": 512, "validation_rows": 0}
    data["sae"]["training_samples"] = 4096
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("one_seed")
    params = write_params(folder / "one_seed.yaml", json.loads(json.dumps(parameters())))  # without YAML's aliases
    command = [str(Path(sys.executable).with_name("husai")), "run", str(params), "--evidence", str(folder / "evidence")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stderr
    return find_run(folder / "evidence", "one_seed")


def test_the_verdict_says_that_gates_on_stability_are_missing(finished: Run) -> None:
    gates = {row.gate: row for row in finished.record("gate").table("gates")}
    for name in ("random_model", "random_decoder", "transcoder"):
        assert (gates[name].verdict, gates[name].note) == ("missing", "a single seed has no PW-MCC to compare")
    assert finished.manifest()["verdict"].startswith("Not releasable: ")
    assert "random model: missing, random decoder: missing, transcoder: missing" in finished.manifest()["verdict"]


def test_a_further_sweep_leaves_a_notebook_a_record_and_figures_under_its_own_name(finished: Run) -> None:
    assert {"routed", "scaling"} < {*finished.manifest()["steps"]}
    assert [row.condition for row in finished.record("frontier").table("members")] == ["topk"]
    assert [row.condition for row in finished.record("routed").table("members")] == ["routed_topk"]
    for name in ("notebooks/03_frontier.ipynb", "notebooks/03_routed.ipynb", "figures/routed_stability.png"):
        assert (finished.path / name).is_file()
    injected = (finished.path / "notebooks" / "03_routed.ipynb").read_text(encoding="utf-8")
    assert r"sweep = \"routed\"" in injected
    sources = {row.source for row in finished.record("selection").table("candidates")}
    assert sources == {"frontier", "routed"}


def test_a_grid_at_one_seed_has_effects_without_bounds_and_no_agreement(finished: Run) -> None:
    record = finished.record("scaling")
    assert [row.condition for row in record.table("groups")] == POINTS
    assert record.table("pairs") == []
    for row in record.table("effects"):
        assert (row.low, row.high, row.n_seeds) == (None, None, 1)
        assert (row.effect is None) == (row.metric == "pwmcc")


def test_the_run_passes_its_audit(finished: Run) -> None:
    assert audit_run(finished).problems == []


def test_its_page_names_both_sweeps_and_what_a_single_seed_lacks(finished: Run, tmp_path: Path) -> None:
    assert husai("render", "--evidence", finished.path.parent.parent, "--out", tmp_path / "site").code == 0
    page = (tmp_path / "site" / "cycles" / f"{finished.name}.html").read_text(encoding="utf-8")
    for words in ("Stability across seeds: frontier", "Stability across seeds: routed", "Scaling: layer, tokens, width",
                  "a single seed has no PW-MCC to compare", "a single seed has no agreement across seeds"):  # fmt: skip
        assert words in page
    for notebook in ("03_frontier", "03_routed", "05_scaling"):
        assert (tmp_path / "site" / "cycles" / finished.name / f"{notebook}.html").is_file()


# What a forger tries, who makes every hash and everything that is shown agree


@pytest.fixture(scope="module")
def shown(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A copy that is audited fast."""
    with pytest.MonkeyPatch.context() as patch:
        fast_audits(patch)
        run = copied(finished, tmp_path_factory.mktemp("shown"))
        show_again(run)
        yield run


def rows_of(data: dict[str, Any], table: str, **of: Any) -> list[dict[str, Any]]:
    return [row for row in data["tables"][table] if all(row[name] == value for name, value in of.items())]


def higher_effect(data: dict[str, Any]) -> None:
    rows_of(data, "effects", metric="saebench_delta", of="tokens")[0]["effect"] += 0.1


def bounds(data: dict[str, Any]) -> None:
    rows_of(data, "effects", metric="cebench_delta", of="layer")[0].update(low=0.1, high=0.3, note="")


def without_point(data: dict[str, Any]) -> None:
    gone = {POINTS[-1], f"baseline_{POINTS[-1]}"}
    for name in ("members", "groups", "probes", "ceilings"):
        data["tables"][name] = [row for row in data["tables"][name] if row["condition"] not in gone]


def swapped_baselines(data: dict[str, Any]) -> None:
    """Those of two token budgets, which have one layer, width and k."""
    few, many = (f"baseline_{name_of((0, tokens, 32))}" for tokens in (256, 1024))
    for name in ("members", "probes", "ceilings"):
        for row in data["tables"][name]:
            row["condition"] = {few: many, many: few}.get(row["condition"], row["condition"])
    data["tables"]["members"].sort(
        key=lambda row: [f"{p}{n}" for p in ("", "baseline_") for n in POINTS].index(row["condition"])
    )


def one_baseline_twice(data: dict[str, Any]) -> None:
    few, many = (
        rows_of(data, "members", condition=f"baseline_{name_of((0, tokens, 32))}")[0] for tokens in (256, 1024)
    )
    many.update({name: value for name, value in few.items() if name != "condition"})


def raw_of_another_layer(data: dict[str, Any]) -> None:
    """Of one SAE, with the deltas that follow."""
    own, other = (rows_of(data, "probes", condition=name_of((layer, 1024, 64))) for layer in (1, 0))
    for row, of in zip(own, other, strict=True):
        assert row["data_set"] == of["data_set"]
        row.update(llm_auc=of["llm_auc"], delta=row["test_auc"] - of["llm_auc"])


def effect_left_out(data: dict[str, Any]) -> None:
    data["tables"]["effects"].pop()


def better_delta(data: dict[str, Any]) -> None:
    data["tables"]["members"][0]["cebench_delta"] += 1.0


FORGED: dict[str, tuple[str, Change, str]] = {
    "an effect": ("scaling", higher_effect, "effect of scaling/effects saebench_delta tokens"),
    "bounds of one seed": ("scaling", bounds, "low of scaling/effects cebench_delta layer"),
    "an effect left out": ("scaling", effect_left_out, "effects is"),
    "a point left out": ("scaling", without_point, "SAEs of scaling is"),
    "swapped baselines of two points": ("scaling", swapped_baselines, f"cebench_delta of scaling/members {POINTS[0]}"),
    "one baseline for two points": ("scaling", one_baseline_twice, "weights of several SAEs of scaling"),
    "the raw AUC of another layer": ("scaling", raw_of_another_layer, f"llm_auc of scaling/probes {POINTS[-1]}"),
    "a delta of a further sweep": ("routed", better_delta, "cebench_delta of routed/members routed_topk"),
}


@pytest.mark.parametrize(("step", "change", "said"), FORGED.values(), ids=FORGED.keys())
def test_a_falsified_grid_or_sweep_is_found_though_all_hashes_agree(
    shown: Run, tmp_path: Path, step: str, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    run = copied(shown, tmp_path)
    rewrite(run, step, change)
    problems = audit_run(run).problems
    assert any(problem.startswith(said) for problem in problems), problems
    assert not any("was changed after" in problem or "another SHA-256" in problem for problem in problems)


def test_nothing_is_found_where_nothing_was_falsified(shown: Run, tmp_path: Path) -> None:
    run = copied(shown, tmp_path)
    assert audit_run(run).problems == []
    rewrite(run, "routed", lambda data: None)
    assert audit_run(run).problems == []
