"""Gates: every verdict by hand, the properties that keep them honest, and two earlier decisions."""

import json
import math
from pathlib import Path

import pytest
import synthetic_rows
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from husai_lib.decisions import gates
from husai_lib.decisions.gates import (
    External,
    describe,
    evaluate_gates,
    evaluate_members,
    external_results,
    release_policy,
)
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows.base import group_sha256
from husai_lib.evidence.rows.controls import ControlRow
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.files import canonical_json
from husai_lib.intervals import Interval
from husai_lib.params.rules import GateParams
from husai_lib.report import sentences

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside this checkout")
CONTROLS = ("random_model", "random_decoder", "transcoder", "ood")
NAMES = [*CONTROLS, "external_saebench", "external_cebench", "external"]


def control(name, delta, low=None, high=None, note=""):
    return ControlRow(
        control=name, metric="pwmcc", candidate=None, control_value=None, delta=delta, delta_low=low, delta_high=high,
        note=note, candidate_sha256="",
    )  # fmt: skip


def controls(**changed):
    """Four controls that pass clearly, some replaced; None removes one."""
    rows = {name: control(name, 0.05, 0.01, 0.09) for name in CONTROLS} | changed
    return [row for row in rows.values() if row is not None]


def controls_of(members, **changed):
    """The same controls, of the weights of these members."""
    sha256 = group_sha256((member.seed, member.weights_sha256) for member in members)
    return [row.model_copy(update={"candidate_sha256": sha256}) for row in controls(**changed)]


def interval(mean, low):
    return Interval(mean, low, None if low is None else 2 * mean - low, 3, 0.1)


def external(saebench=(0.05, 0.01), cebench=(0.5, 0.1), **more):
    return External(saebench and interval(*saebench), cebench and interval(*cebench), **more)


def verdicts(policy):
    return {gate.gate: gate.verdict for gate in policy.gates}


def gate(policy, name):
    return next(row for row in policy.gates if row.gate == name)


def saebench_member(seed, saebench=0.1, cebench=0.5, **changed):
    floats = {name: 1.0 for name, field in MemberRow.model_fields.items() if field.annotation is float}
    values = floats | {
        "condition": "topk", "architecture": "topk", "seed": seed, "d_sae": 1024, "k": 32, "l0": 32.0,
        "l0_matched": True, "saebench_delta": saebench, "cebench_delta": cebench, "cebench_calibrated": None,
        "cebench_calibrated_contrastive": None,
        "key": "", "weights_sha256": "", "cebench_interpretability": 7.0, "cebench_ceiling": 1023 / 32,
    }  # fmt: skip
    return MemberRow(**(values | changed))


BASELINE = [saebench_member(seed, cebench=None, condition="baseline") for seed in range(3)]


def test_all_gates_pass_and_each_names_its_record():
    policy = evaluate_gates(external(), controls(), GateParams())
    assert verdicts(policy) == dict.fromkeys(NAMES, "pass")
    assert policy.pass_all
    assert policy.verdict == "Releasable: all 7 required gates pass."
    assert [row.source for row in policy.gates] == ["stress"] * 4 + ["frontier"] * 3


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("random_model", 0.0, 0.2, "fail"),  # must exceed 0
        ("random_model", 1e-9, 0.2, "pass"),
        ("random_decoder", -0.01, 0.2, "fail"),
        ("transcoder", 0.0, 0.2, "pass"),  # must reach 0
        ("transcoder", -0.0, 0.2, "pass"),
        ("transcoder", -1e-9, 0.2, "fail"),
        ("ood", -1.0, 0.10, "pass"),  # may not exceed 0.10
        ("ood", -1.0, 0.1000001, "fail"),
    ],
)
def test_a_control_is_read_at_the_conservative_end_of_its_interval(name, low, high, verdict):
    policy = evaluate_gates(external(), controls(**{name: control(name, 0.05, low, high)}), GateParams())
    expected = dict.fromkeys(NAMES, "pass") | {name: verdict}
    assert verdicts(policy) == expected
    assert policy.pass_all == (verdict == "pass")
    assert gate(policy, name).bound == (high if name == "ood" else low)
    assert evaluate_gates(
        external(), controls(**{name: control(name, 0.05, low, high)}), GateParams(basis="value")
    ).pass_all


def test_external_gates_need_both_lower_bounds():
    policy = evaluate_gates(external(saebench=(0.02, -0.001), cebench=(0.3, 0.2)), controls(), GateParams())
    assert verdicts(policy) == dict.fromkeys(NAMES, "pass") | {"external_saebench": "fail", "external": "fail"}
    assert (gate(policy, "external").value, gate(policy, "external").bound) == (0.02, -0.001)
    exactly = evaluate_gates(external(saebench=(0.02, 0.0), cebench=(0.3, 0.0)), controls(), GateParams())
    assert exactly.pass_all
    thresholds = GateParams(min_saebench_delta=0.01, min_cebench_delta=0.15)
    joint = gate(
        evaluate_gates(external(saebench=(0.02, 0.01), cebench=(0.3, 0.2)), controls(), thresholds), "external"
    )
    assert (joint.verdict, joint.threshold) == ("pass", 0.0)
    assert (joint.value, joint.bound) == pytest.approx((0.01, 0.0))


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("row", ["absent", "empty"])
def test_a_missing_control_fails_the_gate_if_required(name, row):
    given_row = None if row == "absent" else control(name, None, note="no shifted set")
    policy = evaluate_gates(external(), controls(**{name: given_row}), GateParams())
    assert verdicts(policy) == dict.fromkeys(NAMES, "pass") | {name: "missing"}
    assert not policy.pass_all
    assert gate(policy, name).note == ("the control was not run" if row == "absent" else "no shifted set")
    assert policy.verdict == f"Not releasable: 1 of 7 required gates fails ({describe(name)}: missing)."
    flag = "require_random_model" if name.startswith("random") else f"require_{name}"
    lenient = evaluate_gates(external(), controls(**{name: given_row}), GateParams(**{flag: False}))
    assert lenient.pass_all
    assert gate(lenient, name).verdict == "missing"


def test_missing_external_results_fail():
    policy = evaluate_gates(external(cebench=None, note="not measured"), controls(), GateParams())
    assert verdicts(policy) == dict.fromkeys(NAMES, "pass") | {"external_cebench": "missing", "external": "missing"}
    assert gate(policy, "external_cebench").note == "not measured"
    assert gate(policy, "external").bound is None
    failing = evaluate_gates(external(saebench=(-1.0, -2.0), cebench=None), controls(), GateParams())
    assert gate(failing, "external").verdict == "missing"


def test_one_seed_has_no_bound_and_fails_but_not_by_value():
    rows = controls(transcoder=control("transcoder", 0.05))
    policy = evaluate_gates(external(saebench=(0.05, None)), rows, GateParams())
    failing = {"transcoder": "fail", "external_saebench": "fail", "external": "fail"}
    assert verdicts(policy) == dict.fromkeys(NAMES, "pass") | failing
    assert "95 % bound" in gate(policy, "transcoder").note
    assert evaluate_gates(external(saebench=(0.05, None)), rows, GateParams(basis="value")).pass_all


def test_no_required_gate_shows_nothing():
    flags = dict.fromkeys(("require_random_model", "require_transcoder", "require_ood", "require_external"), False)
    policy = evaluate_gates(external(), controls(), GateParams(**flags))
    assert not policy.pass_all
    assert policy.verdict == "Not releasable: no gate is required, so nothing was shown."


def test_two_rows_of_one_control_are_refused():
    with pytest.raises(DataError, match="one row a control"):
        evaluate_gates(external(), [*controls(), control("ood", 0.0)], GateParams())


def test_a_threshold_above_the_ceiling_of_the_width_is_refused_as_unreachable():
    # 1024 latents cannot score above 1023 / 32 = 31.97; the public baseline of 32768 has 47.95.
    params = GateParams(min_cebench_delta=0.0)
    wide = external(cebench=(0.5, 0.1), cebench_baseline=47.95, cebench_ceiling=1023 / 32)
    policy = evaluate_gates(wide, controls(), params)
    assert verdicts(policy) == dict.fromkeys(NAMES, "pass") | {
        "external_cebench": "unreachable",
        "external": "unreachable",
    }
    assert not policy.pass_all
    assert all(number in gate(policy, "external_cebench").note for number in ("47.95", "31.97"))
    matched = external(cebench=(0.5, 0.1), cebench_baseline=7.0, cebench_ceiling=1023 / 32)
    assert evaluate_gates(matched, controls(), params).pass_all
    high = GateParams(min_cebench_delta=25.0)  # 7 + 25 = 32 > 31.97
    assert gate(evaluate_gates(matched, controls(), high), "external_cebench").verdict == "unreachable"


numbers = st.one_of(st.sampled_from([0.0, -0.0, 0.1]), st.floats(-1, 1))
widths = st.one_of(st.just(0.0), st.floats(1e-6, 1))  # narrower ones drown in the rounding of the mean
bases = st.sampled_from(["bound", "value"])
maybe = st.one_of(st.none(), numbers)
many = settings(max_examples=examples(500), deadline=None)


def passes(policy):
    """Per gate whether it passes, and whether the whole does."""
    return [row.verdict == "pass" for row in policy.gates] + [policy.pass_all]


def policy_of(values, half, params):
    """Four controls and both benchmarks at these values, within +- half."""
    rows = [control(name, x, x - half, x + half) for name, x in zip(CONTROLS, values, strict=False)]
    results = External(*(Interval(x, x - half, x + half, 3, 0.1) for x in values[4:]), 7.0, 1023 / 32)
    return evaluate_gates(results, rows, params)


six = st.lists(numbers, min_size=6, max_size=6)


@many
@given(six, widths, widths, bases)
def test_a_wider_interval_never_turns_a_fail_into_a_pass(values, width, more, basis):
    narrow, wide = (policy_of(values, half, GateParams(basis=basis)) for half in (width, width + more))
    assert all(before or not after for before, after in zip(passes(narrow), passes(wide), strict=True))


@many
@given(st.sampled_from(NAMES[:6]), six, widths, widths, bases)
def test_one_wider_interval_leaves_the_other_gates_as_they_are(name, values, width, more, basis):
    where = NAMES.index(name)
    bounds = [(x, x - width, x + width) for x in values]
    wider = [*bounds]
    wider[where] = (values[where], values[where] - width - more, values[where] + width + more)
    before, after = (
        evaluate_gates(
            External(*(Interval(*bound, 3, 0.1) for bound in those[4:])),
            [control(name, *bound) for name, bound in zip(CONTROLS, those, strict=False)],
            GateParams(basis=basis),
        )
        for those in (bounds, wider)
    )
    changed = {a.gate for a, b in zip(before.gates, after.gates, strict=True) if a.verdict != b.verdict}
    assert changed <= {name, "external"}
    assert "external" not in changed or name.startswith("external")
    assert all(verdicts(before)[gate] == "pass" for gate in changed)


@many
@given(numbers, numbers, widths, widths)
def test_seeds_further_apart_never_turn_a_fail_into_a_pass(saebench, cebench, apart, more):
    def policy(step):
        members = [saebench_member(s, saebench + (s - 1) * step, cebench + (s - 1) * step) for s in range(3)]
        return evaluate_members(members, BASELINE, controls_of(members), GateParams())

    assert all(
        before or not after for before, after in zip(passes(policy(apart)), passes(policy(apart + more)), strict=True)
    )


THRESHOLDS = [name for name, field in GateParams.model_fields.items() if field.annotation is float]


@many
@given(six, widths, st.sampled_from(THRESHOLDS), st.tuples(numbers, st.floats(0, 30)), bases)
def test_a_stricter_threshold_never_turns_a_fail_into_a_pass(values, width, name, thresholds, basis):
    threshold, more = thresholds
    stricter = threshold - more if name == "max_ood_drop" else threshold + more
    before, after = (policy_of(values, width, GateParams(**{name: x}, basis=basis)) for x in (threshold, stricter))
    assert all(was or not now for was, now in zip(passes(before), passes(after), strict=True))


flags = st.sampled_from([name for name in GateParams.model_fields if name.startswith("require_")])


@many
@given(
    st.lists(st.tuples(maybe, maybe, maybe), min_size=4, max_size=4),
    maybe,
    maybe,
    st.sets(flags),
    bases,
)
def test_all_pass_means_that_each_required_gate_passes(rows, saebench, cebench, waived, basis):
    params = GateParams(basis=basis, **dict.fromkeys(waived, False))
    given_rows = [control(name, *row) for name, row in zip(CONTROLS, rows, strict=True)]
    results = External(*(None if x is None else Interval(x, x, x, 3, 0.1) for x in (saebench, cebench)))
    policy = evaluate_gates(results, given_rows, params)
    required = [row for row in policy.gates if row.required]
    assert policy.pass_all == (bool(required) and all(row.verdict == "pass" for row in required))
    assert policy.verdict.startswith("Releasable") == policy.pass_all
    assert all(row.value is not None for row in policy.gates if row.verdict == "pass")
    assert all(row.bound is not None for row in policy.gates if row.verdict == "pass" and basis == "bound")
    assert json.loads(canonical_json(release_policy(policy)))["rows"] == [row.model_dump() for row in policy.gates]


@settings(max_examples=examples(200), deadline=None)
@given(st.permutations(controls(ood=control("ood", 0.2, 0.1, 0.3))))
def test_the_order_of_controls_does_not_matter(rows):
    assert evaluate_gates(external(), rows, GateParams()) == evaluate_gates(
        external(), sorted(rows, key=str), GateParams()
    )


@settings(max_examples=examples(200), deadline=None)
@given(st.permutations(range(5)), st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_the_order_of_members_and_baselines_does_not_matter(order, values):
    members = [saebench_member(seed, x, -x / 3) for seed, x in enumerate(values)]
    baseline = [saebench_member(seed, cebench_interpretability=7 + x) for seed, x in enumerate(values)]
    shuffled = ([rows[i] for i in order] for rows in (members, baseline))
    rows = controls_of(members)
    assert evaluate_members(*shuffled, rows, GateParams()) == evaluate_members(members, baseline, rows, GateParams())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_where_it_would_enter(bad):
    # Rows and parameters refuse it as they are made or read, so that no gate ever sees it.
    for field in ("delta", "low", "high"):
        for name in CONTROLS:
            with pytest.raises(ValueError, match="finite"):
                control(name, **{"delta": 0.1, field: bad})
    for field in ("saebench", "cebench"):
        with pytest.raises(ValueError, match="finite"):
            saebench_member(0, **{field: bad})
    for name in THRESHOLDS:
        with pytest.raises(ValueError, match="finite"):
            GateParams(**{name: bad})
    with pytest.raises(ValueError, match="finite"):
        evaluate_gates(external(saebench=(bad, 0.0)), controls(), GateParams())


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_is_a_value_of_either_sign(zero):
    policy = evaluate_gates(
        external(saebench=(zero, zero), cebench=(zero, zero)),
        [control(name, zero, zero, zero) for name in CONTROLS],
        GateParams(),
    )
    expected = dict.fromkeys(NAMES, "pass") | {"random_model": "fail", "random_decoder": "fail"}  # must exceed 0
    assert verdicts(policy) == expected


def test_members_are_judged_by_their_t_intervals():
    members = [saebench_member(seed, saebench=x) for seed, x in enumerate([0.1, 0.2, 0.3])]
    policy = evaluate_members(members, BASELINE, controls_of(members), GateParams(), source="cycle1/frontier")
    row = gate(policy, "external_saebench")
    assert row.value == pytest.approx(0.2)
    assert row.bound == pytest.approx(0.2 - stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))  # -0.048
    assert (row.verdict, row.source) == ("fail", "cycle1/frontier")
    assert gate(policy, "external_cebench").verdict == "pass"
    results = external_results(members, BASELINE)
    assert (results.cebench_baseline, results.cebench_ceiling) == (7.0, 1023 / 32)


def test_one_member_has_no_bound_and_none_is_missing():
    alone = [saebench_member(0)]
    assert gate(evaluate_members(alone, BASELINE, controls_of(alone), GateParams()), "external").verdict == "fail"
    nobody = evaluate_members([], BASELINE, [], GateParams())
    assert set(verdicts(nobody).values()) == {"missing"}
    assert gate(nobody, "external_saebench").note == "no group was selected"


MEMBERS = [saebench_member(seed, weights_sha256=f"weights {seed}") for seed in range(3)]


@pytest.mark.parametrize(
    "judged",
    [
        [*MEMBERS[:2], saebench_member(2, weights_sha256="weights of another training")],
        MEMBERS[:2],
        [*MEMBERS, saebench_member(3)],
        [saebench_member(seed, weights_sha256=f"weights {(seed + 1) % 3}") for seed in range(3)],
        [],
    ],
    ids=["another training", "a seed less", "a seed more", "seeds exchanged", "none selected"],
)
def test_controls_of_other_weights_are_refused(judged):
    assert evaluate_members(MEMBERS, BASELINE, controls_of(MEMBERS), GateParams()).pass_all
    assert evaluate_members(MEMBERS[::-1], BASELINE, controls_of(MEMBERS), GateParams()).pass_all
    with pytest.raises(IntegrityError, match="control random_model was run on other weights than the candidate's"):
        evaluate_members(judged, BASELINE, controls_of(MEMBERS), GateParams())


def test_one_control_of_other_weights_among_four_is_refused():
    rows = [*controls_of(MEMBERS)[:3], *controls_of(MEMBERS[:2])[3:]]
    with pytest.raises(IntegrityError, match=r"control ood was run on other weights .*\(topk at 3 seeds\)"):
        evaluate_members(MEMBERS, BASELINE, rows, GateParams())


@pytest.mark.parametrize(
    ("baseline", "note"),
    [
        ([], "none has the candidate's width, target k and seeds"),
        ([saebench_member(0, d_sae=32768)], "none has the candidate's width, target k and seeds"),
        ([saebench_member(3)], "none has the candidate's width, target k and seeds"),
        # two widths whose mean is the candidate's are no baseline of its width
        ([saebench_member(0, d_sae=512), saebench_member(0, d_sae=1536)], "none has the candidate's width"),
        ([saebench_member(0, l0=36.0)], "its l0 is 36, the candidate's 32"),
        ([saebench_member(0, l0=0.0)], "its l0 is 0, the candidate's 32"),
        ([saebench_member(0, d_sae=1100, l0=35.3, condition="given")], "none has the candidate's width"),
    ],
)
def test_cebench_counts_only_against_a_matched_baseline(baseline, note):
    members = [saebench_member(seed) for seed in range(3)]
    policy = evaluate_members(members, baseline, controls_of(members), GateParams())
    row = gate(policy, "external_cebench")
    assert row.verdict == "missing"
    assert note in row.note
    assert gate(policy, "external_saebench").verdict == "pass"


def test_a_baseline_exactly_ten_per_cent_off_is_matched():
    members = [saebench_member(seed) for seed in range(3)]
    baseline = [saebench_member(seed, l0=35.2) for seed in range(3)]  # 35.2 - 32 exceeds 3.2 in floats
    assert gate(evaluate_members(members, baseline, [], GateParams()), "external_cebench").verdict == "pass"


def test_a_candidate_without_an_active_latent_has_no_matched_baseline():
    members = [saebench_member(seed, l0=0.0) for seed in range(3)]
    row = gate(evaluate_members(members, BASELINE, [], GateParams()), "external_cebench")
    assert (row.verdict, row.note) == ("missing", "the baseline is not matched: its l0 is 32, the candidate's 0")


def test_a_member_without_cebench_makes_it_missing():
    members = [saebench_member(0), saebench_member(1), saebench_member(2, cebench=None)]
    row = gate(evaluate_members(members, BASELINE, controls_of(members), GateParams()), "external_cebench")
    assert (row.verdict, row.note) == ("missing", "1 of 3 members have no cebench_delta")


def test_the_published_policy_holds_numbers_thresholds_and_verdicts():
    policy = evaluate_gates(external(), controls(ood=control("ood", 0.2, 0.1, 0.3)), GateParams())
    published = json.loads(canonical_json(release_policy(policy)))
    assert published["metrics"]["ood"] == {"metric": "pwmcc", "value": 0.2, "bound": 0.3}
    assert published["thresholds"]["ood"] == {"below": 0.1}
    assert published["gates"] == dict.fromkeys(NAMES, True) | {"ood": False}
    assert published["verdicts"]["ood"] == "fail"
    assert published["pass_all"] is False
    assert published["verdict"] == policy.verdict
    assert [row["gate"] for row in published["rows"]] == NAMES
    assert published["rows"][3] == {
        "gate": "ood", "metric": "pwmcc", "value": 0.2, "bound": 0.3, "threshold": 0.1, "direction": "below",
        "required": True, "verdict": "fail", "source": "stress", "note": "",
    }  # fmt: skip
    assert [GateRow(**row) for row in published["rows"]] == list(policy.gates)


def test_the_published_policy_is_the_same_text_whatever_the_order_of_rows():
    rows = controls_of(MEMBERS)
    texts = {
        canonical_json(release_policy(evaluate_members(members, baseline, own, GateParams())))
        for members, baseline, own in [(MEMBERS, BASELINE, rows), (MEMBERS[::-1], BASELINE[::-1], rows[::-1])]
    }
    assert len(texts) == 1


def earlier(cycle):
    return json.loads((GOLDEN / cycle / "release_policy.json").read_text())


def compare(policy, old):
    assert {name: verdicts(policy)[name] == "pass" for name in NAMES if name in old["gates"]} == {
        name: passed for name, passed in old["gates"].items() if name in NAMES
    }
    assert policy.pass_all == old["gates"]["pass_all"]


@needs_golden
def test_the_gate_of_cycle_3_is_reproduced():
    # A stress value without an interval was its own bound; external gates read lower bounds.
    old = earlier("cycle3")
    m = old["metrics"]
    rows = [
        control("random_model", m["trained_random_delta"], m["trained_random_delta_lcb"]),
        control("random_decoder", 0.1, 0.1),
        control("transcoder", m["transcoder_delta"], m["transcoder_delta"]),
        control("ood", m["ood_drop"], high=m["ood_drop"]),
    ]
    results = External(
        Interval(m["saebench_delta"], m["saebench_delta_ci95_low"], None, 5, None),
        Interval(m["cebench_interp_delta_vs_baseline"], m["cebench_interp_delta_vs_baseline_ci95_low"], None, 5, None),
    )
    compare(evaluate_gates(results, rows, GateParams()), old)
    # It compared 1024 latents with a baseline that they cannot reach; today's gate says so.
    baseline = m["cebench_interpretability_max"] - m["cebench_interp_delta_vs_baseline"]
    results = External(results.saebench, results.cebench, baseline, 1023 / 32)
    policy = evaluate_gates(results, rows, GateParams())
    assert gate(policy, "external_cebench").verdict == "unreachable"
    compare(policy, old)


@needs_golden
def test_the_gate_of_cycle_2_is_reproduced_where_missing_results_fail():
    old = earlier("cycle2")
    m = old["metrics"]
    rows = [control("random_model", m["trained_random_delta"], m["trained_random_delta_lcb"])]
    rows += [control("transcoder", m["transcoder_delta"]), control("ood", m["ood_drop"])]
    results = External(Interval(m["external_delta"], None, None, 1, None), None)
    policy = evaluate_gates(results, rows, GateParams(basis="value"))
    compare(policy, old)
    assert [verdicts(policy)[name] for name in ("transcoder", "ood", "external_saebench")] == [
        "missing",
        "missing",
        "fail",
    ]


def test_a_new_gate_is_one_row_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = gates.Rule("Do its latents fire?", 0.10, True, "≤", lambda member: member.dead_fraction)
    monkeypatch.setitem(gates.RULES, "dead_latents", rule)
    members = [synthetic_rows.member(seed=seed, dead_fraction=dead) for seed, dead in ((0, 0.0), (1, 0.03), (2, 0.06))]
    policy = evaluate_members(members, [], [], GateParams())
    row = next(row for row in policy.gates if row.gate == "dead_latents")
    half = 4.302653 * 0.03 / 3**0.5  # t of 2 degrees of freedom, standard deviation 0.03
    assert (row.value, row.bound) == (pytest.approx(0.03), pytest.approx(0.03 + half, abs=1e-6))
    assert (row.verdict, row.required, row.threshold) == ("fail" if 0.03 + half > 0.1 else "pass", True, 0.1)
    assert "Do its latents fire?" in sentences.gate_sentences(policy.gates)
    assert evaluate_members([], [], [], GateParams()).gates[-1].verdict == "missing"
