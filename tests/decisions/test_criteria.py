"""The decision criteria: every outcome by hand, what may be subtracted, and the properties that keep them honest."""

from dataclasses import replace

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from husai_lib.decisions.candidates import settings_of
from husai_lib.decisions.criteria import Standing, compare, criterion_outcome
from husai_lib.decisions.of_run import earlier_standing
from husai_lib.errors import DataError
from husai_lib.evidence.rows.decided import CriterionRow
from husai_lib.evidence.rows.earlier import CaveatRow, EarlierGateRow, EarlierGroupRow, EarlierMemberRow
from husai_lib.evidence.runs import Record
from husai_lib.files import canonical_json
from husai_lib.intervals import Interval, mean_interval
from husai_lib.report.cells import DIFFERENCE, cell
from husai_lib.report.sentences import outcome_sentence

RUN, IMPORTED = "quickstart/run_20260101T000000Z", "imported/cycle3"
CONTROLS = ("random_model", "random_decoder", "transcoder", "in_domain", "ood")
BENCHMARKS = ("external_saebench", "external_cebench", "external_cebench_calibrated")
GATES = (*CONTROLS, *BENCHMARKS, "external")
SETS = [f"{n}_set" for n in range(16)]
MEASURED = {
    "model": {"name": "org/model", "prepend_bos": True, "dtype": "float32", "seed": 0},
    "hook": "blocks.0.hook_resid_pre",
    "data sets": SETS[:8],
    "probing": {"ks": [1, 2, 5], "choose_k": "validation"},
    "stories": "offline",
    "pairs": {"max_rows": 200, "independence": "as_published", "permutations": 100, "seed": 0},
    "baseline": ["aa", "bb", "cc"],
}


def measured(**changed):
    """As `candidates.settings_of` gives it from the sections of the parameters, with the weights of the baselines."""
    given = MEASURED | changed
    sections = {
        "model": given["model"], "activations": {"hook_name": given["hook"]}, "probing": given["probing"],
        "texts": {"probing": given["data sets"], "stories": given["stories"]}, "contrastive": given["pairs"],
    }  # fmt: skip
    return settings_of(sections) | {"baseline": canonical_json(given["baseline"]).strip()}


def external(saebench=(0.1, 0.1), cebench=(0.5, 0.5)):
    return saebench and mean_interval(saebench), cebench and mean_interval(cebench)


def gates_of(verdicts, thresholds=None):
    return {gate: (verdict, (thresholds or {}).get(gate, 0.0)) for gate, verdict in verdicts.items()}


def earlier_member(seed, condition="topk", **changed):
    none = {name: None for name, field in EarlierMemberRow.model_fields.items() if type(None) in _kinds(field)}
    return EarlierMemberRow(**none | {
        "position": seed, "condition": condition, "architecture": "topk", "seed": seed, "model": "org/model",
        "hook_name": "blocks.0.hook_resid_pre", "data_sets": ",".join(SETS[:8]), "ks": "1,2,5",
        "cebench_baseline": "release/id", "pairs": "org/stories-v4, 200 pairs", "evaluated_as": "", "failed": "",
        "checkpoint": "", "weights_sha256": "", "results_path": "",
    } | changed)  # fmt: skip


def earlier_group(rank=0, condition="topk", **changed):
    none = {name: None for name, field in EarlierGroupRow.model_fields.items() if type(None) in _kinds(field)}
    return EarlierGroupRow(**none | {
        "rank": rank, "condition": condition, "architecture": "topk", "n_seeds": 5, "on_front": True,
        "joint_score": 0.9, "saebench_delta": -0.04, "saebench_delta_std": 0.005, "saebench_delta_low": -0.045,
        "saebench_delta_high": -0.035, "cebench_delta": -40.0, "cebench_delta_std": 0.3, "cebench_delta_low": -40.3,
        "cebench_delta_high": -39.7,
    } | changed)  # fmt: skip


def _kinds(field):
    return getattr(field.annotation, "__args__", ())


def earlier_gate(gate, stated="pass", required=True):
    return EarlierGateRow(gate=gate, value=None, bound=None, threshold=None, direction="", required=required,
                          stated=stated)  # fmt: skip


def standing(
    name=RUN, saebench=(0.1, 0.2, 0.3), cebench=(1.0, 2.0, 3.0), *, gates=(), thresholds=None, note="", **changed
):
    rows = gates_of(dict.fromkeys(GATES, "pass") | dict(gates), thresholds)
    about = {"measured_on": measured(), "gates": rows, "note": note} | changed
    return Standing(name, *external(saebench, cebench), **about)


def standing_of_import(name, groups, members, gates, caveats=()):
    """The standing of an import that holds these rows in one record."""
    tables = {"earlier_groups": groups, "earlier_members": members, "earlier_gates": gates, "caveats": caveats}
    rows = {table: [row.model_dump() for row in own] for table, own in tables.items()}
    return earlier_standing(
        name, lambda run: {"all": Record("all", {"tables": rows, "summary": {"kind": "gates"}}, "")}
    )


def standing_with(saebench):
    return replace(standing(), saebench=saebench, cebench=mean_interval((1.0, 2.0, 3.0)))


def row(rows, metric):
    return next(row for row in rows if row.metric == metric)


def outcomes(rows):
    return {n: criterion_outcome([row for row in rows if row.criterion == n]) for n in (1, 2)}


def shifted(by, **more):
    """A standing whose deltas all lie this much higher."""
    return standing(saebench=[x + by for x in (0.1, 0.2, 0.3)], cebench=[x + 10 * by for x in (1.0, 2.0, 3.0)], **more)


def test_both_deltas_must_improve_by_their_bounds():
    # Both groups of 3 have std 0.1, so error 0.1 * sqrt(2 / 3) and 4 degrees: 2.776 * 0.0816 = 0.2267; a group alone
    # has t(2) = 4.3027 and 0.1 / sqrt(3): 0.2484, which is wider and counts.
    rows = compare(shifted(0.25), standing(IMPORTED))
    saebench = row(rows, "saebench_delta")
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (saebench.here, saebench.there, saebench.difference) == pytest.approx((0.45, 0.2, 0.25))
    assert (saebench.difference_low, saebench.difference_high) == pytest.approx((0.25 - half, 0.25 + half))
    assert (saebench.outcome, saebench.note, saebench.earlier) == ("met", "", IMPORTED)
    assert outcomes(rows)[1] == "met"
    assert outcomes(compare(shifted(0.24), standing()))[1] == "not met"
    one_better = compare(standing(saebench=(1.1, 1.2, 1.3)), standing())
    assert [row.outcome for row in one_better[:2]] == ["met", "not met"]
    assert outcomes(one_better)[1] == "not met"


@pytest.mark.parametrize(("here", "there"), [(True, True), (False, True), (True, False), (False, False)])
def test_a_side_that_was_not_confirmed_is_said_to_be_optimistic(here, there):
    rows = compare(replace(standing("a"), confirmed=here), replace(standing("b"), confirmed=there))
    for row in (row for row in rows if row.criterion == 1):
        assert ("optimistic here" in row.note, "optimistic there" in row.note) == (not here, not there)


def test_no_difference_is_no_improvement_not_even_for_constant_groups():
    for zeros in ((0.0, 0.0, 0.0), (-0.0, -0.0), (0.0, -0.0)):
        rows = compare(standing(saebench=zeros, cebench=zeros), standing(saebench=(0.0, 0.0), cebench=(-0.0, 0.0)))
        assert [(r.difference, r.difference_low, r.difference_high, r.outcome) for r in rows[:2]] == [
            (0.0, 0.0, 0.0, "not met")
        ] * 2


def test_constant_groups_that_differ_improve():
    rows = compare(
        standing(saebench=(0.2, 0.2), cebench=(0.0, 0.0)), standing(saebench=(0.1, 0.1), cebench=(-1.0, -1.0))
    )
    assert row(rows, "cebench_delta").difference_low == 1.0
    assert outcomes(rows)[1] == "met"


@pytest.mark.parametrize("sides", [((0.9,), (0.1, 0.1)), ((0.9, 0.9), (0.1,))])
def test_one_seed_on_either_side_gives_a_difference_without_bounds(sides):
    here, there = (standing(saebench=values) for values in sides)
    saebench = row(compare(here, there), "saebench_delta")
    assert saebench.difference == pytest.approx(0.8)
    assert (saebench.difference_low, saebench.difference_high, saebench.outcome) == (None, None, "not met")
    assert saebench.note == "too few seeds for a 95 % bound"


def test_what_was_not_measured_here_is_not_met_and_there_not_comparable():
    nobody = standing(saebench=None, cebench=None, note="no group was selected")
    mine, theirs = (row(rows, "saebench_delta") for rows in (compare(nobody, standing()), compare(standing(), nobody)))
    assert (mine.here, mine.there, mine.difference, mine.outcome) == (None, pytest.approx(0.2), None, "not met")
    assert mine.note == "not measured here (no group was selected)"
    assert (theirs.here, theirs.there, theirs.outcome) == (pytest.approx(0.2), None, "not comparable")
    assert theirs.note == "not measured there (no group was selected)"


@pytest.mark.parametrize(
    ("changed", "note", "concerned"),
    [
        ({"data sets": SETS}, "data sets: 8 here, 16 there, 8 in common", "saebench"),
        ({"data sets": SETS[1:9]}, "data sets: 8 here, 8 there, 7 in common", "saebench"),
        ({"probing": {"ks": [1, 2], "choose_k": "test"}}, "probing choose_k: validation here, test there; "
         "probing ks: [1, 2, 5] here, [1, 2] there", "saebench"),
        ({"stories": "org/stories"}, "stories: offline here, org/stories there", "cebench"),
        ({"pairs": MEASURED["pairs"] | {"max_rows": 64}}, "pairs max_rows: 200 here, 64 there", "cebench"),
        ({"baseline": ["dd", "ee", "ff"]}, "baseline: 3 here, 3 there, 0 in common", "cebench"),
        ({"model": MEASURED["model"] | {"name": "n" * 70}}, f"model name: org/model here, {'n' * 59}… there", "both"),
        ({"model": MEASURED["model"] | {"prepend_bos": False}}, "model prepend_bos: true here, false there", "both"),
        ({"hook": "blocks.1.hook_resid_pre"},
         "hook: blocks.0.hook_resid_pre here, blocks.1.hook_resid_pre there", "both"),
    ],
)  # fmt: skip
def test_deltas_measured_on_different_things_are_shown_but_not_subtracted(changed, note, concerned):
    here, there = (
        Standing(name, *external((0.1, 0.2), (0.1, 0.2)), measured(**more), {})
        for name, more in ((RUN, {}), ("quickstart/run_20250101T000000Z", changed))
    )
    rows = compare(here, there)
    for which in ("saebench", "cebench"):
        found = row(rows, f"{which}_delta")
        assert (found.here, found.there) == pytest.approx((0.15, 0.15))
        if concerned in (which, "both"):
            assert (found.outcome, found.note) == ("not comparable", note)
            assert (found.difference, found.difference_low, found.difference_high) == (None, None, None)
        else:
            assert (found.outcome, found.difference) == ("not met", 0.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"data sets": SETS[7::-1]},
        {"model": MEASURED["model"] | {"seed": 1}},
        {"pairs": MEASURED["pairs"] | {"permutations": 500, "seed": 7}},
    ],
    ids=["the order of data sets", "the seed of a model that is not drawn", "the null of the calibrated score"],
)
def test_what_cannot_change_a_delta_does_not_keep_runs_apart(changed):
    assert measured(**changed) == measured()


def test_the_seed_of_a_drawn_model_keeps_runs_apart():
    drawn = [measured(model=MEASURED["model"] | {"name": "random:x", "seed": seed}) for seed in (0, 1)]
    here, there = (Standing(RUN, *external(), m, {}) for m in drawn)
    assert (
        row(compare(here, there), "cebench_delta").note == "model name: random:x, seed 0 here, random:x, seed 1 there"
    )


def test_the_standing_of_an_import_is_its_first_group_as_stated():
    groups = [earlier_group(1, "relu", saebench_delta=9.0), earlier_group()]
    gates = [earlier_gate("ood"), earlier_gate("transcoder", "fail"), earlier_gate("external", ""),
             earlier_gate("external_saebench", "fail", required=False), earlier_gate("pass_all", "fail")]  # fmt: skip
    found = standing_of_import(IMPORTED, groups, [earlier_member(0), earlier_member(1, "relu", model="other")], gates)
    assert found.saebench == Interval(-0.04, -0.045, -0.035, 5, 0.005)
    assert found.cebench == Interval(-40.0, -40.3, -39.7, 5, 0.3)
    assert found.gates == {"ood": ("pass", None), "transcoder": ("fail", None), "external": ("missing", None)}
    assert found.measured_on == {
        "model name": '"org/model"', "hook": '"blocks.0.hook_resid_pre"',
        "data sets": canonical_json(sorted(SETS[:8])).strip(),
        "probing ks": "[\n 1,\n 2,\n 5\n]", "probing choose_k": '"test"', "stories": '"org/stories-v4"',
        "pairs max_rows": "200", "baseline": '"release/id"',
    }  # fmt: skip


def test_an_import_is_compared_by_what_it_names_and_the_rest_is_said_to_be_unknown():
    there = standing_of_import(IMPORTED, [earlier_group()], [earlier_member(seed) for seed in range(5)], [])
    here = Standing(RUN, *external(), measured(), {})
    saebench, cebench = compare(here, there)
    assert saebench.outcome == cebench.outcome == "not comparable"
    assert saebench.note == (
        "probing choose_k: validation here, test there; not known there: model dtype, model prepend_bos"
    )
    assert cebench.note == (
        "stories: offline here, org/stories-v4 there; baseline: 3 here, release/id there; "
        "not known there: model dtype, model prepend_bos, pairs independence"
    )
    assert (cebench.here, cebench.there, cebench.difference) == (0.5, -40.0, None)


def test_a_group_pooled_over_different_data_sets_is_comparable_with_nothing():
    members = [earlier_member(0), earlier_member(1, data_sets=",".join(SETS)), earlier_member(2, data_sets="")]
    there = standing_of_import(IMPORTED, [earlier_group()], members, [])
    assert "data sets: 8 here, several there" in compare(standing(), there)[0].note


def test_a_member_that_says_nothing_does_not_make_its_group_differ():
    members = [earlier_member(0), earlier_member(1, data_sets="", ks="", pairs="", cebench_baseline="", model="")]
    there, alone = (standing_of_import(IMPORTED, [earlier_group()], own, []) for own in (members, members[:1]))
    assert there.measured_on == alone.measured_on


def test_a_delta_that_does_not_improve_decides_whatever_the_other_was_measured_on():
    there = replace(standing(), measured_on=measured(stories="other"))
    rows = compare(standing(), there)
    assert [row.outcome for row in rows[:2]] == ["not met", "not comparable"]
    assert outcomes(rows)[1] == "not met"
    assert outcomes(compare(shifted(9.0), there))[1] == "not comparable"


def test_a_thing_that_only_the_earlier_run_names_is_unknown_here():
    here, there = (standing(measured_on=things) for things in ({}, {"hook": '"x"'}))
    assert row(compare(here, there), "saebench_delta").note == "not known here: hook"


def test_an_import_without_selection_or_with_several_says_so():
    found = standing_of_import(IMPORTED, [], [earlier_member(0)], [earlier_gate("ood")])
    assert (found.saebench, found.cebench, found.note) == (None, None, "no selection was imported")
    assert found.gates == {"ood": ("pass", None)}
    assert compare(standing(), found)[0].outcome == "not comparable"
    with pytest.raises(DataError, match="imported/cycle3 holds 2 selections; import each decision under its own name"):
        standing_of_import(IMPORTED, [earlier_group(), earlier_group()], [], [])
    with pytest.raises(DataError, match="holds several verdicts on one gate"):
        standing_of_import(IMPORTED, [], [], [earlier_gate("ood"), earlier_gate("ood", "fail")])
    unmeasured = standing_of_import(IMPORTED, [earlier_group(cebench_delta=None)], [], [])
    assert (unmeasured.cebench, unmeasured.saebench.n) == (None, 5)


@pytest.mark.parametrize(
    ("here", "there", "outcome"),
    [
        ({}, {}, "not met"),  # the same
        ({}, {"ood": "fail"}, "met"),
        ({}, {"ood": "missing"}, "met"),
        ({}, {"external": "unreachable"}, "met"),
        ({"ood": "fail"}, {}, "not met"),
        ({"ood": "fail"}, {"external": "fail"}, "not met"),  # as many pass
        ({"ood": "fail"}, {"external": "fail", "external_cebench": "fail"}, "not met"),  # more pass, a control is lost
        ({"ood": "missing"}, {"external": "fail", "external_cebench": "fail"}, "not met"),
        ({"external_saebench": "fail"}, {"external": "fail", "transcoder": "fail"}, "met"),  # no control is lost
        ({"ood": "fail"}, {"ood": "fail", "external": "missing"}, "met"),
    ],
)
def test_the_gate_is_better_where_more_passes_and_no_control_is_lost(here, there, outcome):
    assert outcomes(compare(standing(gates=here), standing(gates=there)))[2] == outcome


def test_a_gate_that_was_not_required_there_gains_nothing_and_one_left_out_here_counts_as_not_passed():
    every, three = dict.fromkeys(GATES, "pass"), dict.fromkeys(GATES[:3], "pass")
    more = compare(replace(standing(), gates=gates_of(every)), replace(standing(), gates=gates_of(three)))
    assert outcomes(more)[2] == "not met"
    assert (row(more, "ood").outcome, row(more, "ood").note) == ("not comparable", "not required there")
    fewer = compare(
        replace(standing(), gates=gates_of(three)), replace(standing(), gates=gates_of(every | {"external": "fail"}))
    )
    assert outcomes(fewer)[2] == "not met"
    lost = row(fewer, "ood")
    assert (lost.verdict_here, lost.verdict_there, lost.outcome, lost.note) == (
        "", "pass", "not met", "not required here",
    )  # fmt: skip
    dropped = compare(
        replace(standing(), gates=gates_of(three)), replace(standing(), gates=gates_of(three | {"ood": "fail"}))
    )
    assert outcomes(dropped)[2] == "not met"
    assert outcomes(compare(standing(), replace(standing(), gates={})))[2] == "not comparable"


def test_a_lost_control_is_named_in_its_row():
    lost = row(compare(standing(gates={"transcoder": "fail"}), standing()), "transcoder")
    assert (lost.verdict_here, lost.verdict_there, lost.outcome, lost.note) == (
        "fail", "pass", "not met", "passed there",
    )  # fmt: skip
    assert {r.metric for r in compare(standing(), standing())[2:]} == {*GATES}


verdicts = st.sampled_from(["pass", "fail", "missing", "unreachable"])
policies = st.dictionaries(st.sampled_from(GATES), verdicts)


@settings(max_examples=examples(500), deadline=None)
@given(policies, policies)
def test_of_two_gates_only_one_can_be_better(a, b):
    one, other = (replace(standing(), gates=gates_of(gates)) for gates in (a, b))
    if rows := compare(one, other)[2:]:
        forward, back = criterion_outcome(rows), criterion_outcome(compare(other, one)[2:])
        shared = {*a} == {*b}
        assert not (shared and forward == back == "met")
        passes = [bool(gates) and set(gates.values()) == {"pass"} for gates in (a, b)]
        real = all(  # of a joint gate that passes, all parts do
            g.get("external") != "pass" or {g.get(part, "pass") for part in BENCHMARKS} == {"pass"} for g in (a, b)
        )
        assert not (passes == [True, False] and shared and real) or forward == "met"
        assert not (forward == "met" and any(b.get(g) == "pass" != a.get(g) for g in CONTROLS))


@settings(max_examples=examples(500), deadline=None)
@given(policies, policies, st.sampled_from(GATES))
def test_losing_a_gate_never_turns_not_met_into_met(a, b, gate):
    there = replace(standing(), gates=gates_of(b))
    worse = {name: verdict for name, verdict in a.items() if name != gate}
    for fewer in (worse, worse | {gate: "fail"}):
        rows = [compare(replace(standing(), gates=gates_of(gates)), there)[2:] for gates in (a, fewer)]
        if all(rows):
            assert criterion_outcome(rows[1]) != "met" or criterion_outcome(rows[0]) == "met"


deltas = st.lists(st.one_of(st.sampled_from([0.0, -0.0]), st.floats(-1, 1)), min_size=1, max_size=6)
intervals = st.one_of(st.none(), deltas.map(mean_interval))


@settings(max_examples=examples(500), deadline=None)
@given(intervals, intervals)
def test_the_difference_changes_its_sign_with_the_sides(a, b):
    one, other = (standing_with(interval) for interval in (a, b))
    forward, back = (row(compare(*pair), "saebench_delta") for pair in ((one, other), (other, one)))
    assert (forward.here, forward.there) == (back.there, back.here)
    assert (forward.difference is None) == (back.difference is None) == (a is None or b is None)
    if a and b:
        assert (forward.difference, forward.difference_low is None) == (-back.difference, min(a.n, b.n) == 1)
        assert not forward.outcome == back.outcome == "met"
    if a and b and min(a.n, b.n) > 1:
        assert (forward.difference_low, forward.difference_high) == (-back.difference_high, -back.difference_low)


@settings(max_examples=examples(1000), deadline=None)
@given(deltas.map(mean_interval), deltas.map(mean_interval), st.floats(0, 2), st.booleans())
def test_a_wider_interval_on_either_side_never_turns_not_met_into_met(a, b, more, mine):
    def outcome(here, there):
        return row(compare(standing_with(here), standing_with(there)), "saebench_delta")

    def widened(interval):
        return interval if interval.std is None else replace(interval, std=interval.std + more)

    before, after = outcome(a, b), outcome(*((widened(a), b) if mine else (a, widened(b))))
    assert before.outcome == "met" or after.outcome != "met"


def test_the_sentences_say_what_decided():
    better = compare(shifted(0.25), standing(IMPORTED, gates={"random_decoder": "fail"}))
    half = stats.t.ppf(0.975, 2) / 3**0.5  # of CE-Bench, whose std is 1 and whose difference is 2.5
    differences = ["+0.250 [+0.002, +0.498]", f"+2.500 [{2.5 - half:+.3f}, {2.5 + half:+.3f}]"]
    assert [cell(dict(one), DIFFERENCE) for one in better[:2]] == differences
    summary, _, first, second = outcome_sentence(better).splitlines()
    assert summary == "**Progress is shown**:"
    assert first == "- Criterion 1 against imported/cycle3: **met**."
    assert second == (
        "- Criterion 2 against imported/cycle3: **met** "
        "(of 4 gates required there, 4 pass here and 3 there; stress controls lost: none)."
    )
    worse = outcome_sentence(compare(standing(gates={"ood": "fail", "random_model": "missing"}), standing()))
    assert (
        "**not met** (of 6 gates required there, 4 pass here and 6 there; stress controls lost: random model, OOD)"
        in worse
    )


def test_what_cannot_be_compared_is_so_in_the_sentences_and_its_rows_say_why():
    assert outcome_sentence([]).endswith("this comparison was **not made**.")
    there = Standing("imported/a_*b*", None, None, measured(), {}, note="no selection was imported")
    rows = compare(standing(), there)
    summary, _, first, second = outcome_sentence(rows).splitlines()
    assert summary == "**Progress is not shown**:"
    assert first == r"- Criterion 1 against imported/a\_\*b\*: **not comparable**."
    assert rows[0].note == "not measured there (no selection was imported)"
    assert second.endswith("**not comparable** (no gate there can be compared).")
    several = outcome_sentence([*compare(standing(), standing("imported/b")), *rows])
    assert [line.split(":")[0] for line in several.splitlines()[2:]] == [
        r"- Criterion 1 against imported/a\_\*b\*", r"- Criterion 2 against imported/a\_\*b\*",
        "- Criterion 1 against imported/b", "- Criterion 2 against imported/b",
    ]  # fmt: skip
    other = replace(standing(), measured_on=measured(stories="other", hook="blocks.9"))
    assert "stories: offline here, other there" in row(compare(standing(), other), "cebench_delta").note
    silent = replace(standing(), measured_on={"hook": measured()["hook"]})
    assert "not known" in row(compare(standing(), silent), "saebench_delta").note
    alone = row(compare(standing(saebench=(0.1,)), standing()), "saebench_delta")
    assert (cell(dict(alone), DIFFERENCE), alone.note) == ("-0.100 [n/a, n/a]", "too few seeds for a 95 % bound")
    there = replace(standing(), measured_on=measured(stories="other"))
    mixed = compare(standing(saebench=(1.1, 1.2, 1.3)), there)[:2]
    assert [one.difference is None for one in mixed] == [False, True]
    assert "**not comparable**." in outcome_sentence(mixed)


def test_rows_are_what_a_record_holds():
    rows = compare(standing(), standing(IMPORTED, saebench=(0.1,)))
    assert [CriterionRow(**row.model_dump()) for row in rows] == rows
    assert {row.outcome for row in rows} <= {"met", "not met", "not comparable"}


@pytest.mark.parametrize(
    ("gate", "mine", "theirs", "comparable"),
    [("ood", 100.0, 0.1, False), ("ood", 0.05, 0.1, True), ("ood", 0.1, 0.1, True),
     ("transcoder", -1.0, 0.0, False), ("transcoder", 0.0, 0.0, True), ("transcoder", 0.1, 0.0, True)],
)  # fmt: skip
def test_a_gate_that_is_easier_here_proves_nothing(gate, mine, theirs, comparable):
    here = standing(gates={}, thresholds={gate: mine})
    found = row(compare(here, standing(gates={gate: "fail"}, thresholds={gate: theirs})), gate)
    assert (found.outcome == "met") is comparable
    assert found.note == ("" if comparable else f"the threshold is {mine:g} here and {theirs:g} there")


def test_the_joint_gate_is_as_easy_as_the_easiest_of_its_parts():
    there = standing(gates={"external": "fail"}, thresholds={"external_saebench": 0.0})
    rows = compare(standing(thresholds={"external_saebench": -5.0}), there)
    joint = row(rows, "external")
    assert (joint.outcome, joint.note) == ("not comparable", "external SAEBench: the threshold is -5 here and 0 there")
    assert outcomes(rows)[2] == "not met"  # lowering thresholds gains nothing
    assert outcomes(compare(standing(thresholds={"external_saebench": 0.0}), there))[2] == "met"


def test_progress_is_not_shown_where_no_gate_is_required_on_either_side():
    rows = compare(replace(shifted(0.5), gates={}), replace(standing(), gates={}))
    assert {one.criterion for one in rows} == {1}
    said = outcome_sentence(rows)
    assert said.startswith("**Progress is not shown**")
    assert said.endswith("**not comparable** (no gate there can be compared).")


def test_gates_judged_by_the_estimate_are_not_compared_with_those_judged_by_bounds():
    rows = compare(standing(basis="value"), standing(gates={"ood": "fail"}))
    assert {r.outcome for r in rows if r.criterion == 2} == {"not comparable"}
    rows = compare(standing(), standing(basis="value", gates={"ood": "fail"}))
    assert row(rows, "ood").outcome == "met"


def test_the_benchmarks_count_once_where_the_joint_gate_is():
    there = standing(gates=dict.fromkeys(["external", *BENCHMARKS], "fail"))
    assert "of 6 gates required there, 6 pass here and 5 there" in outcome_sentence(compare(standing(), there))


@pytest.mark.parametrize("gate", ["transcoder", "ood"])
@pytest.mark.parametrize(("mine", "theirs"), [("pass", "fail"), ("fail", "pass"), ("pass", "pass")])
def test_a_gate_that_asked_something_else_in_imports_neither_gains_nor_loses(gate, mine, theirs):
    """Then a transcoder had to be more stable than the SAE, and a dead SAE lost nothing under shift."""
    here, there = standing(gates={gate: mine}), {gate: theirs}
    rows = compare(here, standing(IMPORTED, gates=there))
    found = row(rows, gate)
    assert (found.outcome, found.note) == ("not comparable", "it asked something else there")
    assert (found.verdict_here, found.verdict_there) == (mine, theirs)
    assert criterion_outcome([one for one in rows if one.criterion == 2]) == "not met"
    assert "stress controls lost: none" in outcome_sentence(rows)
    of_ours = row(compare(here, standing(gates=there)), gate)
    assert of_ours.outcome == ("met" if mine == "pass" else "not met")


def test_a_gate_that_earlier_cycles_did_not_have_gains_nothing():
    old = {gate: "pass" for gate in GATES if gate not in {"in_domain", "external_cebench_calibrated"}}
    rows = compare(standing(), replace(standing(), gates=gates_of(old)))
    assert [r.note for r in rows if r.metric in {"in_domain", "external_cebench_calibrated"}] == [
        "not required there"
    ] * 2
    assert outcomes(rows)[2] == "not met"


def test_what_is_known_to_be_wrong_with_an_import_stands_beside_its_deltas():
    known = CaveatRow(caveat="width_ceiling", record="f", rows=3, what="w")
    found = standing_of_import(IMPORTED, [earlier_group()], [earlier_member(1)], [], [known, known])
    assert row(compare(standing(), found), "cebench_delta").note.endswith("known to be wrong there: width ceiling")
