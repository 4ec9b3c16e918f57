"""Gates: every verdict by hand, the properties that keep them honest, and two earlier decisions."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from husai_lib.decisions import gates
from husai_lib.decisions.gates import Judged, describe, evaluate, external_results, release_policy
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows.base import group_sha256, shared_level
from husai_lib.evidence.rows.controls import ControlRow
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.rows.measured import GroupRow, MemberRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.files import canonical_json
from husai_lib.params.rules import GateParams
from husai_lib.report import sentences

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside this checkout")
CONTROLS = ("random_model", "random_decoder", "transcoder", "in_domain", "ood")
EXTERNAL = ("external_saebench", "external_cebench", "external_cebench_calibrated")
NAMES = [*CONTROLS, *EXTERNAL, "external"]
T2 = stats.t.ppf(0.975, 2)
CEILING = 1023 / 32
"""The highest CE-Bench score of 1,024 latents, 31.97."""


def control(name, delta, low=None, high=None, note="", **more):
    """The row of a control; random_model is the first of the random models."""
    about = {"metric": "pwmcc", "candidate": None, "control_value": None, "level": 0.95, "l0_matched": True}
    about |= {"control": "random_model_1" if name == "random_model" else name, "candidate_sha256": ""}
    return ControlRow(**about | {"delta": delta, "delta_low": low, "delta_high": high, "note": note} | more)


def controls(**changed):
    """Controls that pass clearly, some replaced; None removes one."""
    rows = {name: control(name, 0.05, 0.01, 0.09) for name in CONTROLS} | changed
    return [row for row in rows.values() if row is not None]


def weights_of(members):
    return group_sha256((member.seed, member.weights_sha256) for member in members)


def decided(group, rows, params=None):
    """The policy on a group, with the controls run on its weights."""
    own = [row.model_copy(update={"candidate_sha256": weights_of(group.members)}) for row in rows]
    return evaluate(group, own, params or GateParams())


def sae(seed, cebench=0.5, calibrated=0.5, **changed):
    floats = {name: 1.0 for name, field in MemberRow.model_fields.items() if field.annotation is float}
    values = floats | {
        "condition": "topk", "architecture": "topk", "seed": seed, "d_sae": 1024, "k": 32, "l0": 32.0,
        "l0_matched": True, "dead_fraction": 0.0, "cebench_delta": cebench, "cebench_calibrated_delta": calibrated,
        "cebench_calibrated": None, "cebench_calibrated_contrastive": None, "key": "", "weights_sha256": "",
        "cebench_interpretability": 7.0, "cebench_ceiling": CEILING,
    }  # fmt: skip
    return MemberRow(**(values | changed))


def baseline(seed, **changed):
    return sae(seed, None, None, **{"condition": "baseline"} | changed)


BASELINES = [baseline(seed) for seed in range(3)]


def probes_of(table, names="abcdefgh"):
    """The probes of a group from its deltas `[seeds, data sets]`."""
    return [
        ProbeRow.model_construct(condition="topk", seed=seed, data_set=name, at=None, duplicates="drop", split=42,
                                 test_rows=200, best_k=1, delta=delta)
        for seed, own in enumerate(table) for name, delta in zip(names, own, strict=False)
    ]  # fmt: skip


def three(mean, half):
    """Three seeds whose mean has this t interval; without one, a single seed."""
    if half is None:
        return [mean]
    step = half * math.sqrt(3) / T2
    return [mean - step, mean, mean + step]


def judged(saebench=(0.05, 0.04), cebench=(0.5, 0.4), calibrated=(0.5, 0.4), **more):
    """A group whose external deltas have these means and half widths; its data sets do not differ."""
    values = list(zip(*(three(*given) for given in (cebench, calibrated)), strict=True))
    members = [sae(seed, *own) for seed, own in enumerate(values)]
    probes = probes_of([[delta, delta] for delta in three(*saebench)])
    return Judged(members, BASELINES, probes, ks=[1, 2, 5], **more)


def verdicts(policy):
    return {gate.gate: gate.verdict for gate in policy.gates}


def expected(**changed):
    return dict.fromkeys(NAMES, "pass") | changed


def gate(policy, name):
    return next(row for row in policy.gates if row.gate == name)


def test_all_gates_pass_and_each_names_its_record():
    policy = decided(judged(), controls())
    assert verdicts(policy) == expected()
    assert policy.pass_all
    assert policy.verdict == "Releasable: all 8 required gates pass."
    assert [row.source for row in policy.gates] == ["stress"] * 5 + ["selection"] * 4
    assert gate(policy, "external").note == ""


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("random_model", 0.0, 0.2, "fail"),  # must exceed 0
        ("random_model", 1e-9, 0.2, "pass"),
        ("random_decoder", -0.01, 0.2, "fail"),
        ("transcoder", -0.05, 0.2, "pass"),  # must reach -0.05
        ("transcoder", -0.0500001, 0.2, "fail"),
        ("in_domain", 0.0, 0.2, "fail"),  # must exceed chance
        ("in_domain", 1e-9, 0.2, "pass"),
        ("ood", -1.0, 0.10, "pass"),  # may not exceed 0.10
        ("ood", -1.0, 0.1000001, "fail"),
    ],
)
def test_a_control_is_read_at_the_conservative_end_of_its_interval(name, low, high, verdict):
    rows = controls(**{name: control(name, 0.05, low, high)})
    policy = decided(judged(), rows)
    assert verdicts(policy) == expected(**{name: verdict})
    assert policy.pass_all == (verdict == "pass")
    assert gate(policy, name).bound == (high if name == "ood" else low)
    assert decided(judged(), rows, GateParams(basis="value")).pass_all


def test_external_gates_need_every_lower_bound():
    failing = {"external_saebench": (0.02, 0.021), "external_cebench": (0.3, 0.301)}
    for name, given_half in failing.items():
        policy = decided(judged(**{name.removeprefix("external_"): given_half}), controls())
        assert verdicts(policy) == expected(**{name: "fail", "external": "fail"})
    both_at = decided(judged(saebench=(0.0, 0.0), cebench=(0.0, 0.0), calibrated=(0.0, 0.0)), controls())
    assert both_at.pass_all
    thresholds = GateParams(min_saebench_delta=0.01, min_cebench_delta=0.15, min_cebench_calibrated_delta=0.2)
    group = judged(saebench=(0.03, 0.005), cebench=(0.3, 0.1), calibrated=(0.3, 0.09))
    joint = gate(decided(group, controls(), thresholds), "external")
    assert (joint.verdict, joint.threshold) == ("pass", 0.0)
    # margins of the values 0.02, 0.15, 0.1 and of the bounds 0.015, 0.05, 0.01
    assert (joint.value, joint.bound) == pytest.approx((0.02, 0.01))


def test_ce_bench_must_pass_raw_and_calibrated():
    """An L1 SAE gains 1.87 raw while its calibrated score is below the baseline's: the raw score rewards its tails."""
    policy = decided(judged(cebench=(1.87, 0.2), calibrated=(-4.4, 0.5)), controls())
    assert verdicts(policy) == expected(external_cebench_calibrated="fail", external="fail")
    assert gate(policy, "external_cebench_calibrated").bound == pytest.approx(-4.9)
    assert gate(policy, "external_cebench_calibrated").metric == "cebench_calibrated_delta"
    assert not policy.pass_all
    lenient = decided(
        judged(cebench=(1.87, 0.2), calibrated=(-4.4, 0.5)), controls(), GateParams(min_cebench_calibrated_delta=-5.0)
    )
    assert lenient.pass_all


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("row", ["absent", "empty"])
def test_a_missing_control_fails_the_gate_if_required(name, row):
    given_row = None if row == "absent" else control(name, None, note="no shifted set")
    policy = decided(judged(), controls(**{name: given_row}))
    assert verdicts(policy) == expected(**{name: "missing"})
    assert not policy.pass_all
    assert gate(policy, name).note == ("the control was not run" if row == "absent" else "no shifted set")
    assert policy.verdict == f"Not releasable: 1 of 8 required gates fails ({describe(name)}: missing)."
    flag = "require_random_model" if name.startswith("random") else f"require_{name}"
    flag = "require_ood" if name == "in_domain" else flag
    lenient = decided(judged(), controls(**{name: given_row}), GateParams(**{flag: False}))
    assert lenient.pass_all
    assert gate(lenient, name).verdict == "missing"


@pytest.mark.parametrize("basis", ["bound", "value"])
@pytest.mark.parametrize("name", ["random_model", "transcoder"])
def test_a_control_of_another_l0_is_missing_however_clear_its_numbers_are(name, basis):
    unmatched = control(name, 0.5, 0.4, 0.6, note="the control's L0 is more than 10 % off k = 8", l0_matched=False)
    policy = decided(judged(), controls(**{name: unmatched}), GateParams(basis=basis))
    assert verdicts(policy) == expected(**{name: "missing"})
    assert gate(policy, name).note == unmatched.note
    assert gate(policy, name).value == 0.5
    assert not policy.pass_all


def models(*bounds, **more):
    """Several random models with these deltas, lower bounds and L0s."""
    return [
        control(f"random_model_{i + 1}", delta, low, delta + 0.1, l0_matched=matched)
        for i, (delta, low, matched) in enumerate(bounds)
    ]


@pytest.mark.parametrize(
    ("bounds", "nearest", "verdict"),
    [
        ([(0.3, 0.2, True), (0.1, -0.01, True)], 2, "fail"),
        ([(0.1, -0.01, True), (0.3, 0.2, True)], 1, "fail"),
        ([(0.1, 0.05, True), (0.3, 0.02, True), (0.2, 0.1, True)], 2, "pass"),
        ([(0.3, None, True), (0.2, 0.1, True)], 1, "missing"),  # no bound is the worst of bounds
        ([(0.3, 0.2, True), (0.2, 0.1, False)], 2, "missing"),
        ([(-0.3, -0.4, True), (0.2, 0.1, False)], 2, "missing"),
    ],
)
def test_of_several_random_models_the_nearest_to_the_candidate_decides(bounds, nearest, verdict):
    rows = [*controls(random_model=None), *models(*bounds)]
    for order in (rows, rows[::-1]):
        policy = decided(judged(), order)
        row = gate(policy, "random_model")
        assert verdicts(policy) == expected(random_model=verdict)
        assert (row.value, row.bound) == bounds[nearest - 1][:2]
        assert f"random model {nearest} is the nearest of {len(bounds)}" in row.note


def test_by_the_estimate_the_random_model_with_the_smallest_estimate_decides():
    rows = [*controls(random_model=None), *models((0.05, -0.1, True), (-0.01, -0.05, True))]
    row = gate(decided(judged(), rows, GateParams(basis="value")), "random_model")
    assert (row.value, row.verdict) == (-0.01, "fail")


def test_a_random_model_that_was_not_run_makes_the_gate_missing():
    rows = [*controls(), control("random_model_2", None, note="switched off")]
    row = gate(decided(judged(), rows), "random_model")
    assert (row.verdict, row.note) == ("missing", "switched off")


def test_a_dead_sae_does_not_pass_under_shift():
    """An AUC of 0.5 everywhere loses nothing under shift, but it finds nothing in domain."""
    dead = control("in_domain", 0.0, 0.0, 0.0)
    lost = control("ood", None, note="nothing is above chance in domain, so no share of it is retained")
    for ood, verdict in ((lost, "missing"), (control("ood", -0.128, -0.2, -0.05), "pass")):
        policy = decided(judged(), controls(in_domain=dead, ood=ood))
        assert verdicts(policy) == expected(in_domain="fail", ood=verdict)
        assert not policy.pass_all


def test_the_transcoder_gate_rewards_stable_seeds_and_refuses_unstable_ones():
    """Random decoders, 0.125 below the transcoder, passed the reversed gate; SAEs as stable as it failed it."""
    unstable, stable = control("transcoder", -0.125, -0.15, -0.10), control("transcoder", 0.0, -0.02, 0.02)
    assert verdicts(decided(judged(), controls(transcoder=unstable))) == expected(transcoder="fail")
    assert verdicts(decided(judged(), controls(transcoder=stable))) == expected()
    row = gate(decided(judged(), controls(transcoder=stable)), "transcoder")
    assert (row.threshold, row.direction) == (-0.05, "above")


def test_one_seed_has_no_bound_and_is_missing_but_not_by_value():
    rows = controls(transcoder=control("transcoder", 0.05))
    group = judged(saebench=(0.05, None))
    policy = decided(group, rows)
    assert verdicts(policy) == expected(transcoder="missing", external_saebench="missing", external="missing")
    assert "too few seeds for a bound" in gate(policy, "transcoder").note
    assert decided(group, rows, GateParams(basis="value")).pass_all


def test_no_required_gate_shows_nothing():
    flags = dict.fromkeys(("require_random_model", "require_transcoder", "require_ood", "require_external"), False)
    policy = decided(judged(), controls(), GateParams(**flags))
    assert not policy.pass_all
    assert policy.verdict == "Not releasable: no gate is required, so nothing was shown."


@pytest.mark.parametrize("name", ["ood", "random_model"])
def test_two_rows_of_one_control_are_refused(name):
    with pytest.raises(DataError, match=f"2 rows for the control {name}; keep one row a control"):
        decided(judged(), [*controls(), control(name, 0.0)])


# What a group can reach


def test_a_threshold_above_the_ceiling_of_the_width_is_refused_as_unreachable():
    # 1024 latents cannot score above 1023 / 32 = 31.97; the public baseline of 32768 has 47.95.
    group = replace(judged(), baselines=[baseline(0, cebench_interpretability=47.95, cebench_ceiling=181.0)])
    policy = decided(group, controls())
    assert verdicts(policy) == expected(external_cebench="unreachable", external="unreachable")
    assert not policy.pass_all
    row = gate(policy, "external_cebench")
    assert row.ceiling == pytest.approx(CEILING - 47.95)
    assert row.note == "refused: 0 lies above -15.98, the largest value that this group can reach"
    assert gate(policy, "external").note == "all benchmarks must pass"
    assert gate(decided(judged(), controls()), "external_cebench").ceiling == pytest.approx(CEILING - 7)
    high = GateParams(min_cebench_delta=25.0)  # 7 + 25 = 32 > 31.97
    assert gate(decided(judged(), controls(), high), "external_cebench").verdict == "unreachable"
    assert gate(decided(judged(), controls(), high), "external_cebench_calibrated").ceiling is None


def group_row(**ceilings):
    """Every ceiling of the probes lies far below the threshold but those that are given."""
    names = ("largest_k_delta", "full_width_delta", "supervised_delta", "oracle_delta", "single_latent_delta")
    return GroupRow.model_construct(**dict.fromkeys(names, -0.2) | ceilings)


def test_only_an_exact_ceiling_makes_saebench_unreachable():
    """A greedy search, trained latents and the whole width are no proof: another probe may do better."""
    low = judged(saebench=(-0.3, 0.1), group=group_row())
    several = gate(decided(low, controls()), "external_saebench")
    assert (several.verdict, several.ceiling) == ("fail", None)
    one = gate(decided(replace(low, ks=[1]), controls()), "external_saebench")
    assert (one.verdict, one.ceiling) == ("unreachable", -0.2)
    assert one.note == "refused: 0 lies above -0.2, the largest value that this group can reach"
    within = replace(low, ks=[1], group=group_row(single_latent_delta=0.0))
    assert gate(decided(within, controls()), "external_saebench").verdict == "fail"
    assert gate(decided(replace(low, ks=[1], group=None), controls()), "external_saebench").ceiling is None


def test_saebench_says_how_many_latents_its_probes_read():
    found = external_results(judged())["external_saebench"]
    assert found.note == "probes read at most 5 of 1,024 latents"
    assert external_results(replace(judged(), ks=[1, 64]))["external_saebench"].note.startswith(
        "probes read at most 64 of"
    )


# Properties


# smaller numbers and widths drown in the rounding of the mean
numbers = st.one_of(st.sampled_from([0.0, -0.0, 0.1]), st.floats(-1, 1).map(lambda x: round(x, 6)))
widths = st.one_of(st.just(0.0), st.floats(1e-6, 1))
bases = st.sampled_from(["bound", "value"])
maybe = st.one_of(st.none(), numbers)
many = settings(max_examples=examples(500), deadline=None)
eight = st.lists(numbers, min_size=8, max_size=8)


def passes(policy):
    """Per gate whether it passes, and whether the whole does."""
    return [row.verdict == "pass" for row in policy.gates] + [policy.pass_all]


def policy_of(values, halves, params):
    """Controls and benchmarks at these values, each within +- its half width."""
    whole = list(zip(values, halves, strict=True))
    rows = [control(name, x, x - half, x + half) for name, (x, half) in zip(CONTROLS, whole, strict=False)]
    return decided(judged(*whole[5:]), rows, params)


@many
@given(eight, widths, widths, bases)
def test_a_wider_interval_never_turns_a_fail_into_a_pass(values, width, more, basis):
    narrow, wide = (policy_of(values, [half] * 8, GateParams(basis=basis)) for half in (width, width + more))
    assert all(before or not after for before, after in zip(passes(narrow), passes(wide), strict=True))


@many
@given(st.integers(0, 7), eight, widths, widths, bases)
def test_one_wider_interval_leaves_the_other_gates_as_they_are(where, values, width, more, basis):
    name, halves = NAMES[where], [width] * 8
    wider = [*halves]
    wider[where] += more
    before, after = (policy_of(values, those, GateParams(basis=basis)) for those in (halves, wider))
    changed = {a.gate for a, b in zip(before.gates, after.gates, strict=True) if a.verdict != b.verdict}
    assert changed <= {name, "external"}
    assert "external" not in changed or name.startswith("external")
    assert all(verdicts(before)[gate] == "pass" for gate in changed)


THRESHOLDS = [name for name, field in GateParams.model_fields.items() if field.annotation is float]


@many
@given(eight, widths, st.sampled_from(THRESHOLDS), st.tuples(numbers, st.floats(0, 30)), bases)
def test_a_stricter_threshold_never_turns_a_fail_into_a_pass(values, width, name, thresholds, basis):
    threshold, more = thresholds
    stricter = threshold - more if name == "max_ood_drop" else threshold + more
    before, after = (
        policy_of(values, [width] * 8, GateParams(**{name: x}, basis=basis)) for x in (threshold, stricter)
    )
    assert all(was or not now for was, now in zip(passes(before), passes(after), strict=True))


@many
@given(eight, widths, st.floats(0.5, 0.999), st.floats(0, 0.5), st.booleans())
def test_a_higher_confidence_never_turns_a_fail_into_a_pass(values, width, level, more, sets):
    def policy(chosen):
        group = replace(judged(*((x, width) for x in values[5:])), level=0.95, sets_level=chosen)
        return decided(group if sets else replace(group, level=chosen), controls())

    narrow, wide = policy(level), policy(level + more * (1 - level))
    assert all(before or not after for before, after in zip(passes(narrow), passes(wide), strict=True))


flags = st.sampled_from([name for name in GateParams.model_fields if name.startswith("require_")])


@many
@given(
    st.lists(st.tuples(maybe, maybe, maybe, st.booleans()), min_size=5, max_size=5),
    st.lists(maybe, min_size=2, max_size=2),
    st.sets(flags),
    bases,
)
def test_all_pass_means_that_each_required_gate_passes(rows, cebench, waived, basis):
    params = GateParams(basis=basis, **dict.fromkeys(waived, False))
    given_rows = [control(name, *row, l0_matched=matched) for name, (*row, matched) in zip(CONTROLS, rows, strict=True)]
    members = [sae(seed, *cebench) for seed in range(3)]
    policy = decided(replace(judged(), members=members), given_rows, params)
    required = [row for row in policy.gates if row.required]
    assert policy.pass_all == (bool(required) and all(row.verdict == "pass" for row in required))
    assert policy.verdict.startswith("Releasable") == policy.pass_all
    assert all(row.value is not None for row in policy.gates if row.verdict == "pass")
    assert all(row.bound is not None for row in policy.gates if row.verdict == "pass" and basis == "bound")
    assert json.loads(canonical_json(release_policy(policy)))["rows"] == [row.model_dump() for row in policy.gates]


@settings(max_examples=examples(200), deadline=None)
@given(st.permutations([*controls(ood=control("ood", 0.2, 0.1, 0.3)), control("random_model_2", 0.05, 0.01, 0.09)]))
def test_the_order_of_controls_does_not_matter(rows):
    shuffled, ordered = (decided(judged(), own) for own in (rows, sorted(rows, key=str)))
    assert [row.model_copy(update={"note": ""}) for row in shuffled.gates] == [
        row.model_copy(update={"note": ""}) for row in ordered.gates
    ]


@settings(max_examples=examples(200), deadline=None)
@given(st.permutations(range(5)), st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_the_order_of_members_and_baselines_does_not_matter(order, values):
    members = [sae(seed, x, -x / 3, weights_sha256=f"weights {seed}") for seed, x in enumerate(values)]
    compared = [baseline(seed, cebench_interpretability=7 + x) for seed, x in enumerate(values)]
    group = replace(judged(), members=members, baselines=compared)
    shuffled = replace(group, members=[members[i] for i in order], baselines=[compared[i] for i in order])
    assert decided(shuffled, controls()) == decided(group, controls())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_where_it_would_enter(bad):
    # Rows and parameters refuse it as they are made or read, so that no gate ever sees it.
    for field in ("delta", "low", "high"):
        for name in CONTROLS:
            with pytest.raises(ValueError, match="finite"):
                control(name, **{"delta": 0.1, field: bad})
    for field in ("cebench", "calibrated", "saebench_delta", "dead_fraction"):
        with pytest.raises(ValueError, match=r"finite|less than or equal|greater than or equal"):
            sae(0, **{field: bad})
    for name in THRESHOLDS:
        with pytest.raises(ValueError, match="finite"):
            GateParams(**{name: bad})
    with pytest.raises(ValueError, match="finite"):
        decided(judged(saebench=(bad, 0.0)), controls())


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_is_a_value_of_either_sign(zero):
    group = judged(saebench=(zero, 0.0), cebench=(zero, 0.0), calibrated=(zero, 0.0))
    policy = decided(group, [control(name, zero, zero, zero) for name in CONTROLS])
    must_exceed = ("random_model", "random_decoder", "in_domain")
    assert verdicts(policy) == expected(**dict.fromkeys(must_exceed, "fail"))


# The intervals that the gates read


def test_ce_bench_is_judged_by_the_t_interval_over_seeds():
    members = [sae(seed, x, 1.0) for seed, x in enumerate([0.1, 0.2, 0.3])]
    group = replace(judged(), members=members, source="cycle1/frontier")
    row = gate(decided(group, controls()), "external_cebench")
    assert row.value == pytest.approx(0.2)
    assert row.bound == pytest.approx(0.2 - T2 * 0.1 / math.sqrt(3))  # -0.048
    assert (row.verdict, row.source, row.level, row.sets_level) == ("fail", "cycle1/frontier", 0.95, None)
    assert gate(decided(group, controls()), "external_cebench_calibrated").verdict == "pass"


def test_saebench_is_judged_over_seeds_and_data_sets():
    """Seeds agree, data sets do not: three of them say +0.2, 0 and +0.1, so others may say anything."""
    group = replace(judged(), probes=probes_of([[0.2, 0.0, 0.1]] * 3))
    row = gate(decided(group, controls()), "external_saebench")
    assert row.value == pytest.approx(0.1)
    assert row.bound == pytest.approx(0.1 - T2 * 0.1 / math.sqrt(3))
    assert (row.verdict, row.level, row.sets_level) == ("fail", 0.95, 0.95)
    # seed means 0.0, 0.1, 0.2 beside the same data sets: both variances are those of 0.1
    both = replace(group, probes=probes_of(np.add.outer([-0.1, 0.0, 0.1], [0.2, 0.0, 0.1])))
    half = math.sqrt(2) * T2 * 0.1 / math.sqrt(3)
    assert gate(decided(both, controls()), "external_saebench").bound == pytest.approx(0.1 - half)


def test_the_levels_of_the_intervals_are_those_of_the_group():
    spread, t99, t999 = [0.0, 0.1, 0.2], *stats.t.ppf([0.995, 0.9995], 2)
    for table, t in ((np.add.outer(spread, [0.0] * 3), t99), (np.add.outer([0.0] * 3, spread), t999)):
        group = replace(judged(cebench=(0.5, 0.1)), probes=probes_of(table), level=0.99, sets_level=0.999)
        policy = decided(group, controls())
        assert gate(policy, "external_saebench").bound == pytest.approx(0.1 - t * 0.1 / math.sqrt(3))
        assert gate(policy, "external_cebench").bound == pytest.approx(0.5 - 0.1 * t99 / T2)
        assert [gate(policy, name).level for name in (*EXTERNAL, "external")] == [0.99] * 4
        assert [gate(policy, name).sets_level for name in EXTERNAL] == [0.999, None, None]
        assert gate(policy, "ood").level == 0.95


def test_one_member_has_no_bound_and_none_is_missing():
    alone = replace(judged(), members=[sae(0)], probes=probes_of([[0.1, 0.2]]))
    assert gate(decided(alone, controls()), "external").verdict == "missing"
    nobody = evaluate(Judged(), [], GateParams())
    assert set(verdicts(nobody).values()) == {"missing"}
    assert gate(nobody, "external_saebench").note == "no group was selected"
    imported = evaluate(Judged(source="imported/c/frontier"), [], GateParams())
    assert gate(imported, "external_cebench").note.startswith("the candidate is of an import")


# The winner's curse


def passed(cebench, level=0.95):
    """Whether a group with these CE-Bench deltas passes the gate of that benchmark."""
    members = [sae(seed, x, x) for seed, x in enumerate(cebench)]
    rows = decided(replace(judged(level=level), members=members), controls()).gates
    return next(row.verdict for row in rows if row.gate == "external_cebench") == "pass"


@pytest.mark.parametrize("groups", [7, 20])
def test_the_best_of_many_null_groups_is_not_released_by_the_seeds_it_was_chosen_by(groups):
    """All groups are exactly at the threshold; the one with the highest bound goes before the gate."""
    rng, cycles = np.random.default_rng(groups), 800
    counts = {"chosen seeds at 95 %": 0, "chosen seeds at the shared level": 0, "fresh seeds": 0}
    for _ in range(cycles):
        deltas = rng.normal(size=(groups, 3))
        bounds = deltas.mean(1) - T2 * deltas.std(1, ddof=1) / math.sqrt(3)
        best = deltas[bounds.argmax()]
        counts["chosen seeds at 95 %"] += passed(best)
        counts["chosen seeds at the shared level"] += passed(best, shared_level(groups))
        counts["fresh seeds"] += passed(rng.normal(size=3))
    noise = 3 * math.sqrt(0.025 * 0.975 / cycles)
    curse, shared, fresh = (count / cycles for count in counts.values())
    assert curse > {7: 0.10, 20: 0.25}[groups]  # of any of them: 1 - 0.975^7 = 16 %, 1 - 0.975^20 = 40 %
    assert shared < 0.025 + noise
    assert fresh < 0.025 + noise


# Controls belong to the weights they were run on


MEMBERS = [sae(seed, weights_sha256=f"weights {seed}") for seed in range(3)]
GROUP = Judged(MEMBERS, BASELINES, judged().probes)
OF_MEMBERS = [row.model_copy(update={"candidate_sha256": weights_of(MEMBERS)}) for row in controls()]


@pytest.mark.parametrize(
    "members",
    [
        [*MEMBERS[:2], sae(2, weights_sha256="weights of another training")],
        MEMBERS[:2],
        [*MEMBERS, sae(3)],
        [sae(seed, weights_sha256=f"weights {(seed + 1) % 3}") for seed in range(3)],
        [sae(seed + 3, weights_sha256=f"weights {seed}") for seed in range(3)],
        [],
    ],
    ids=["another training", "a seed less", "a seed more", "seeds exchanged", "fresh seeds", "none selected"],
)
def test_controls_of_other_weights_are_refused(members):
    assert evaluate(GROUP, OF_MEMBERS, GateParams()).pass_all
    assert evaluate(replace(GROUP, members=MEMBERS[::-1]), OF_MEMBERS, GateParams()).pass_all
    with pytest.raises(IntegrityError, match="control random_model_1 was run on other weights than the candidate's"):
        evaluate(replace(GROUP, members=members), OF_MEMBERS, GateParams())


def test_one_control_of_other_weights_among_five_is_refused():
    other = OF_MEMBERS[4].model_copy(update={"candidate_sha256": weights_of(MEMBERS[:2])})
    with pytest.raises(IntegrityError, match=r"control ood was run on other weights .*\(topk at 3 seeds\)"):
        evaluate(GROUP, [*OF_MEMBERS[:4], other], GateParams())


def test_a_control_that_was_not_run_is_missing_whatever_weights_it_names():
    not_run = control("ood", None, note="the candidate was trained on other training texts than this run's")
    policy = evaluate(GROUP, [*OF_MEMBERS[:4], not_run], GateParams())
    assert verdicts(policy) == expected(ood="missing")
    assert gate(policy, "ood").note == not_run.note


# The baseline


@pytest.mark.parametrize(
    ("compared", "note"),
    [
        ([], "none has the candidate's width, target k and seeds"),
        ([baseline(0, d_sae=32768)], "none has the candidate's width, target k and seeds"),
        ([baseline(3)], "none has the candidate's width, target k and seeds"),
        # two widths whose mean is the candidate's are no baseline of its width
        ([baseline(0, d_sae=512), baseline(0, d_sae=1536)], "none has the candidate's width"),
        ([baseline(0, l0=36.0)], "its l0 is 36, the candidate's 32"),
        ([baseline(0, l0=0.0)], "its l0 is 0, the candidate's 32"),
        ([baseline(0, d_sae=1100, l0=35.3, condition="given")], "none has the candidate's width"),
    ],
)
def test_cebench_counts_only_against_a_matched_baseline(compared, note):
    policy = decided(replace(judged(), baselines=compared), controls())
    for name in ("external_cebench", "external_cebench_calibrated"):
        assert gate(policy, name).verdict == "missing"
        assert note in gate(policy, name).note
    assert gate(policy, "external_saebench").verdict == "pass"
    assert gate(policy, "external").verdict == "missing"
    assert gate(policy, "external").bound is None


def test_a_baseline_exactly_ten_per_cent_off_is_matched():
    compared = [baseline(seed, l0=35.2) for seed in range(3)]  # 35.2 - 32 exceeds 3.2 in floats
    assert gate(decided(replace(judged(), baselines=compared), []), "external_cebench").verdict == "pass"


def test_a_candidate_without_an_active_latent_has_no_matched_baseline():
    members = [sae(seed, l0=0.0) for seed in range(3)]
    row = gate(decided(replace(judged(), members=members), []), "external_cebench")
    assert (row.verdict, row.note) == ("missing", "the baseline is not matched: its l0 is 32, the candidate's 0")


@pytest.mark.parametrize(
    ("column", "lacking"), [("cebench_delta", {"cebench": None}), ("cebench_calibrated_delta", {"calibrated": None})]
)
def test_a_member_without_a_score_makes_its_gate_missing(column, lacking):
    members = [sae(0), sae(1), sae(2, **lacking)]
    policy = decided(replace(judged(), members=members), controls())
    name = f"external_{column.removesuffix('_delta')}"
    assert verdicts(policy) == expected(**{name: "missing", "external": "missing"})
    assert gate(policy, name).note == f"1 of 3 members have no {column}"


DEAD = "{:.0%} of its latents are dead, {:.0%} of the candidate's"
EXPLAINED = "it explains {:.2f} of the variance, the candidate {:.2f}"


@pytest.mark.parametrize(
    ("column", "theirs", "own", "note"),
    [
        ("dead_fraction", 0.36, 0.0, DEAD), ("dead_fraction", 0.051, 0.0, DEAD),
        ("dead_fraction", 0.049, 0.0, ""), ("dead_fraction", 0.36, 0.35, ""),
        ("explained_variance", 0.55, 0.61, EXPLAINED),
        ("explained_variance", 0.56, 0.60, ""), ("explained_variance", 0.61, 0.55, ""),
    ],
)  # fmt: skip
def test_a_baseline_that_was_trained_less_well_is_noted_and_does_not_decide(column, theirs, own, note):
    members = [member.model_copy(update={column: own}) for member in judged().members]
    compared = [baseline(seed, **{column: theirs}) for seed in range(3)]
    policy = decided(replace(judged(), members=members, baselines=compared), controls())
    assert policy.pass_all
    for name in ("external_cebench", "external_cebench_calibrated"):
        assert gate(policy, name).note == (f"the baseline is handicapped: {note.format(theirs, own)}" if note else "")
    assert "handicapped" not in gate(policy, "external_saebench").note


def test_probes_whose_k_was_chosen_on_the_test_set_decide_no_gate():
    policy = decided(replace(judged(), choose_k="test"), controls())
    missing = {name for name, verdict in verdicts(policy).items() if verdict == "missing"}
    assert missing == {"in_domain", "ood", "external_saebench", "external"}


# What is published


def test_the_published_policy_holds_numbers_thresholds_and_verdicts():
    policy = decided(judged(), controls(ood=control("ood", 0.2, 0.1, 0.3)))
    published = json.loads(canonical_json(release_policy(policy)))
    assert published["metrics"]["ood"] == {"metric": "pwmcc", "value": 0.2, "bound": 0.3}
    assert published["thresholds"]["ood"] == {"below": 0.1}
    assert published["gates"] == dict.fromkeys(NAMES, True) | {"ood": False}
    assert published["verdicts"]["ood"] == "fail"
    assert published["pass_all"] is False
    assert published["verdict"] == policy.verdict
    assert [row["gate"] for row in published["rows"]] == NAMES
    assert published["rows"][4] == {
        "gate": "ood", "metric": "pwmcc", "value": 0.2, "bound": 0.3, "level": 0.95, "sets_level": None,
        "ceiling": None, "threshold": 0.1, "direction": "below", "required": True, "verdict": "fail",
        "source": "stress", "note": "",
    }  # fmt: skip
    assert [GateRow(**row) for row in published["rows"]] == list(policy.gates)


def test_the_published_policy_is_the_same_text_whatever_the_order_of_rows():
    shuffled = replace(GROUP, members=MEMBERS[::-1], baselines=BASELINES[::-1])
    texts = {
        canonical_json(release_policy(evaluate(group, rows, GateParams())))
        for group, rows in [(GROUP, OF_MEMBERS), (shuffled, OF_MEMBERS[::-1])]
    }
    assert len(texts) == 1


# Earlier decisions


def earlier(cycle):
    return json.loads((GOLDEN / cycle / "release_policy.json").read_text())


def compare(policy, old, *, other=()):
    """Every gate decides as then, but those that ask something else today."""
    known = {name: passed for name, passed in old["gates"].items() if name in NAMES and name not in other}
    assert {name: verdicts(policy)[name] == "pass" for name in known} == known
    assert policy.pass_all == old["gates"]["pass_all"]


@needs_golden
def test_the_gate_of_cycle_3_is_reproduced_but_for_the_reversed_transcoder():
    # A stress value without an interval was its own bound; external gates read lower bounds, one number a benchmark.
    old = earlier("cycle3")
    m = old["metrics"]
    more_stable = -m["transcoder_delta"]  # then transcoder minus SAE, and it had to be positive
    rows = [
        control("random_model", m["trained_random_delta"], m["trained_random_delta_lcb"]),
        control("random_decoder", 0.1, 0.1),
        control("transcoder", more_stable, more_stable),
        control("in_domain", 0.1, 0.1),
        control("ood", m["ood_drop"], high=m["ood_drop"]),
    ]
    cebench = (m["cebench_interp_delta_vs_baseline"], 0.0)
    group = judged((m["saebench_delta"], 0.0), cebench, (0.0, 0.0))
    policy = decided(group, rows)
    compare(policy, old, other={"transcoder"})
    assert (old["gates"]["transcoder"], verdicts(policy)["transcoder"]) == (False, "pass")
    # It compared 1024 latents with a baseline that they cannot reach; today's gate says so.
    score = m["cebench_interpretability_max"] - m["cebench_interp_delta_vs_baseline"]
    there = [baseline(seed, cebench_interpretability=score, cebench_ceiling=181.0) for seed in range(3)]
    policy = decided(replace(group, baselines=there), rows)
    assert gate(policy, "external_cebench").verdict == "unreachable"
    compare(policy, old, other={"transcoder"})


@needs_golden
def test_the_gate_of_cycle_2_is_reproduced_where_missing_results_fail():
    old = earlier("cycle2")
    m = old["metrics"]
    rows = [control("random_model", m["trained_random_delta"], m["trained_random_delta_lcb"])]
    rows += [control("transcoder", m["transcoder_delta"]), control("ood", m["ood_drop"])]
    members = [sae(0, None, None)]
    group = replace(judged(), members=members, probes=probes_of([[m["external_delta"]]]))
    policy = decided(group, rows, GateParams(basis="value"))
    compare(policy, old)
    found = [verdicts(policy)[name] for name in ("transcoder", "ood", "external_saebench", "external_cebench")]
    assert found == ["missing", "missing", "fail", "missing"]


def test_a_new_gate_is_one_row_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = gates.Rule("Do its latents fire?", 0.10, True, "≤", lambda member: member.dead_fraction)
    monkeypatch.setitem(gates.RULES, "dead_latents", rule)
    members = [sae(seed, dead_fraction=dead) for seed, dead in ((0, 0.0), (1, 0.03), (2, 0.06))]
    policy = decided(replace(judged(), members=members), [])
    row = next(row for row in policy.gates if row.gate == "dead_latents")
    half = 4.302653 * 0.03 / 3**0.5  # t of 2 degrees of freedom, standard deviation 0.03
    assert (row.value, row.bound) == (pytest.approx(0.03), pytest.approx(0.03 + half, abs=1e-6))
    assert (row.verdict, row.required, row.threshold) == ("fail" if 0.03 + half > 0.1 else "pass", True, 0.1)
    assert "Do its latents fire?" in sentences.gate_sentences(policy.gates, policy.basis)
    assert evaluate(Judged(), [], GateParams()).gates[-1].verdict == "missing"
