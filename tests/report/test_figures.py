import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image
from scipy import stats
from synthetic_rows import (
    ATTACK,
    all_controls,
    candidate,
    candidates,
    control,
    groups,
    member,
    members,
    ood_rows,
    probe,
    probes,
    width_row,
    width_rows,
)  # fmt: skip

from husai_lib.report import figures
from husai_lib.report.figures import ReportFigure


def external(rows: list[Any]) -> ReportFigure:
    return figures.external(rows, groups())


ALL: list[tuple[Callable[[Any], ReportFigure], list[Any]]] = [
    (figures.frontier, members()),
    (figures.stability, groups()),
    (external, members()),
    (figures.duplicates, probes()),
    (figures.pareto, candidates()),
    (figures.controls, all_controls()),
    (figures.ood, ood_rows()),
    (figures.widths, width_rows()),
]
EACH = pytest.mark.parametrize(("draw", "rows"), ALL, ids=[draw.__name__ for draw, _ in ALL])


def points(figure: ReportFigure, panel: int = 0) -> np.ndarray:
    """All scattered points of a panel."""
    scattered = [found for found in figure.axes[panel].collections if isinstance(found, PathCollection)]
    return np.concatenate([np.asarray(found.get_offsets()) for found in scattered])


@EACH
def test_the_same_rows_give_the_same_bytes(draw: Callable[[Any], ReportFigure], rows: list[Any]) -> None:
    assert draw(rows).png() == draw(rows).png()


@EACH
def test_every_axis_is_labelled(draw: Callable[[Any], ReportFigure], rows: list[Any]) -> None:
    first, *others = draw(rows).axes
    assert all(axes.get_xlabel() for axes in (first, *others))
    assert first.get_ylabel() or all(label.get_text() for label in first.get_yticklabels())


@EACH
def test_no_rows_still_make_a_figure(draw: Callable[[Any], ReportFigure], rows: list[Any]) -> None:
    assert Image.open(io.BytesIO(draw([]).png())).size[0] > 100


def test_a_figure_is_drawn_once_and_shown_and_saved_as_the_same_png(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, drawn = figures.frontier(members()), []
    savefig = figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda *args, **options: (drawn.append(args), savefig(*args, **options)))
    assert figure.png() is figure._repr_png_()
    assert len(drawn) == 1
    assert Image.open(io.BytesIO(figure.png())).format == "PNG"


def test_conditions_differ_in_colour_and_in_marker_alike_in_every_figure() -> None:
    styles = figures._styles(row.condition for row in members())
    assert styles == figures._styles(row.condition for row in reversed(candidates()))
    assert len({color for color, _ in styles.values()}) == len({marker for _, marker in styles.values()}) == 4


def test_the_pareto_figure_names_each_condition_and_its_standing_in_the_legend() -> None:
    (legend,) = figures.pareto(candidates()).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "topk (on the front)", "selected", "batchtopk (on the front)", "jumprelu (behind the front)",
        "standard (dropped)",
    ]  # fmt: skip


def test_of_many_groups_only_those_on_the_pareto_front_have_a_colour_and_a_name_in_the_legend() -> None:
    behind = {"on_front": False, "selected": False, "joint_score": 0.1}
    many = [candidate("topk"), *(candidate(f"other_{i}", **behind) for i in range(20)), candidates()[-1]]
    figure = figures.pareto(many)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["topk (on the front)", "selected", "behind the front", "dropped"]
    assert len(points(figure)) == len(many) + 1  # and the ring around the selected one


def test_every_seed_is_a_point_of_the_frontier() -> None:
    expected = {(row.l0, row.explained_variance) for row in members()}
    assert {tuple(point) for point in points(figures.frontier(members())).tolist()} == expected


def test_the_frontier_marks_each_target_k() -> None:
    rows = [member(k=8), member(k=16, l0=16.0)]
    texts = {text.get_text() for text in figures.frontier(rows).axes[0].texts}
    assert texts == {"target k = 8", "target k = 16"}


def test_an_sae_whose_l0_is_not_matched_is_hollow() -> None:
    rows = [member(), member(seed=1, l0=9.5, l0_matched=False), member("standard", l0=11.0, l0_matched=False)]
    figure = figures.frontier(rows)
    scattered = [found for found in figure.axes[0].collections if isinstance(found, PathCollection)]
    hollow = {float(found.get_offsets()[0][0]): not len(found.get_facecolor()) for found in scattered}
    assert hollow == {8.0: False, 9.5: True, 11.0: True}
    keys = {handle.get_label(): bool(len(handle.get_facecolor())) for handle in figure.legends[0].legend_handles}
    assert keys.pop("within 10 % of k (else hollow)")
    assert keys == {"topk": True, "standard": False}  # a condition with no matched SAE at all


def test_the_frontier_shades_what_matches_the_target() -> None:
    (band,) = figures.frontier([member()]).axes[0].patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((7.2, 8.8))  # 10 % of k = 8 on either side


def test_the_legend_of_the_frontier_follows_the_mean_explained_variance() -> None:
    # means: b 0.6, c 0.5, a 0.475; c has both the best and the worst seed
    given = {"a": [0.05, 0.9], "b": [0.6, 0.6], "c": [0.0, 1.0]}
    rows = [member(name, i, explained_variance=ev) for name, evs in given.items() for i, ev in enumerate(evs)]
    (legend,) = figures.frontier(rows).legends
    assert [text.get_text() for text in legend.get_texts()][:3] == ["b", "c", "a"]


def test_eleven_conditions_have_a_marker_each_beside_one_of_seven_colours() -> None:
    styles = figures._styles(f"condition_{i}" for i in range(11)).values()
    assert len({marker for _, marker in styles}) == 11  # so the figure reads in grey
    assert len({color for color, _ in styles}) == 7


@pytest.mark.parametrize(("l0", "scale"), [(70.0, "linear"), (800.0, "log")])
def test_the_l0_axis_is_logarithmic_only_for_a_wide_range(l0: float, scale: str) -> None:
    assert figures.frontier([member(), member(l0=l0, d_sae=1024)]).axes[0].get_xscale() == scale


def test_a_logarithmic_axis_has_a_few_plain_numbers() -> None:
    figure = figures.frontier([member(), member(l0=700.0, d_sae=1024)])
    figure.png()  # ticks are made when it is drawn
    low, high = figure.axes[0].get_xlim()
    shown = [label for label in figure.axes[0].get_xticklabels() if low < label.get_position()[0] < high]
    assert [label.get_text() for label in shown] == ["10", "30", "100", "300"]


def test_external_shows_every_seed_and_the_t_interval_of_the_mean() -> None:
    rows = [member(seed=seed) for seed in range(3)]
    figure = figures.external(rows, [])
    assert sorted(points(figure, 1)[:, 0]) == pytest.approx([0.25, 0.375, 0.5])
    container = figure.axes[1].containers[0]
    (low, _), (high, _) = container.lines[2][0].get_segments()[0]
    half = stats.t.ppf(0.975, 2) * stats.sem([0.25, 0.375, 0.5])
    assert (low, high) == (pytest.approx(0.375 - half), pytest.approx(0.375 + half))


def test_a_delta_that_is_missing_is_said_not_drawn_as_zero() -> None:
    figure = figures.external([member(cebench_delta=None)], [])
    assert [text.get_text() for text in figure.axes[1].texts] == ["n/a"]
    assert not figure.axes[1].collections


def test_one_seed_has_a_point_and_no_interval() -> None:
    (container,) = figures.external([member()], []).axes[0].containers
    assert not container.has_xerr


def test_a_missing_control_is_named_and_the_auc_control_left_to_its_own_figure() -> None:
    missing = control("transcoder", delta=None, delta_low=None, delta_high=None, control_value=None)
    of_probes = [control("in_domain", metric="in_domain_auc"), control("ood", metric="retained_auc")]
    axes = figures.controls([control(), control("random_model_2"), missing, *of_probes]).axes[0]
    names = ["random model 1", "random model 2", "transcoder"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [text.get_text() for text in axes.texts] == ["n/a"]
    assert axes.lines[0].get_xdata()[0] == 0


def test_ood_shows_how_far_the_sae_and_the_raw_activation_exceed_chance() -> None:
    figure = figures.ood([row for row in ood_rows() if row.task != ATTACK])
    for panel, seeds, means in ((0, [0.31, 0.32, 0.33], [0.32, 0.35]), (1, [0.20, 0.22, 0.24], [0.22, 0.28])):
        assert sorted(np.round(points(figure, panel)[:, 0], 6)) == seeds
        drawn = [container.lines[0].get_xdata()[0] for container in figure.axes[panel].containers]
        assert drawn == pytest.approx(means)  # the SAE and the raw activation
    left, right = (axes.get_xlim() for axes in figure.axes)
    assert left == right
    assert left[0] < 0.2
    assert left[1] > 0.35


def test_names_from_outside_are_drawn_literally_and_cut() -> None:
    labels = [label.get_text() for label in figures.ood(ood_rows()).axes[0].get_yticklabels()]
    assert labels == ["87_glue_cola", ATTACK[:35] + "…"]
    figures.ood([row.model_copy(update={"task": "$\\nocommand{$"}) for row in ood_rows()]).png()
    figures.frontier([member("$\\nocommand{$")]).png()


def test_the_widths_figure_has_a_line_for_each_k_of_each_origin_in_every_form() -> None:
    published, released, calibrated = figures.widths(width_rows()).axes
    lines = {line.get_label(): line for line in released.lines}
    assert [label for label in lines if " k = " in label] == [
        "random, k = 32", "trained, k = 32", "random, k = 128", "trained, k = 128"
    ]  # fmt: skip
    np.testing.assert_allclose(lines["random, k = 32"].get_xydata(), [[64, 1.25], [256, 5], [1024, 20]])
    np.testing.assert_allclose(lines["trained, k = 128"].get_xydata(), [[64, 0.3125], [256, 1.25]])
    assert lines["random, k = 32"].get_linestyle() != lines["trained, k = 32"].get_linestyle()
    assert lines["random, k = 32"].get_markerfacecolor() == "white"  # so that origins differ in grey too
    assert lines["random, k = 32"].get_marker() != lines["random, k = 128"].get_marker()
    [first, *_] = published.lines
    np.testing.assert_allclose(first.get_xydata(), [[64, 1], [256, 4], [1024, 16]])
    assert calibrated.lines[0].get_ydata().tolist() == [3.2, 3.2, 3.2]


def test_plain_scores_stand_beside_their_ceiling_and_the_earlier_baseline_calibrated_ones_do_not() -> None:
    *plain, calibrated = figures.widths(width_rows()).axes
    for axes in plain:
        ceilings = [[64, 63 / 8], [256, 255 / 16], [1024, 1023 / 32]]
        assert any(np.array_equal(line.get_xydata(), ceilings) for line in axes.lines)
        assert [text.get_text() for text in axes.texts] == ["ceiling (N - 1) / √N", "earlier baseline: 47.95"]
        assert any(set(line.get_ydata()) == {47.95} for line in axes.lines)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert calibrated.get_yscale() == "linear"
    assert not calibrated.texts
    assert plain[0].get_ylim() == plain[1].get_ylim()


def test_the_widths_are_plain_numbers_and_the_only_ticks() -> None:
    figure = figures.widths(width_rows())
    figure.png()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["64", "256", "1,024"]


def test_a_missing_calibrated_score_is_left_out_of_its_line() -> None:
    figure = figures.widths([width_row("random", 64, 8, calibrated=None), width_row("random", 128, 8)])
    assert figure.axes[2].lines[0].get_xdata().tolist() == [128]


def test_duplicates_has_a_mean_a_form_and_data_set_over_conditions_whose_splits_are_averaged() -> None:
    rows = [
        probe("a", delta=-0.1), probe("a", delta=0.1, split=43), probe("a", delta=0.3, condition="standard"),
        probe("a", delta=-0.4, duplicates="keep"), probe("b", delta=0.2), probe("b", delta=-0.2, duplicates="keep"),
    ]  # fmt: skip
    axes = figures.duplicates(rows).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    means = [container.lines[0].get_xdata()[0] for container in axes.containers]  # type: ignore[attr-defined]
    assert means == pytest.approx([-0.4, -0.2, 0.15, 0.2])  # kept first; of a without duplicates 0 and 0.3
    assert sorted(points(figures.duplicates(rows))[:, 0]) == pytest.approx([-0.4, -0.2, 0.0, 0.2, 0.3])


def gaps(figure: ReportFigure) -> list[float]:
    """The space between neighbouring labels on the x axis of every panel, in widths of a digit."""
    figure.draw_without_rendering()
    boxes = [[label.get_window_extent() for label in axes.get_xticklabels()] for axes in figure.axes]
    digit = figure.axes[0].xaxis.get_majorticklabels()[0].get_fontsize() * figure.dpi / 72 * 0.6
    inside = [
        [box for box in own if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
        for axes, own in zip(figure.axes, boxes, strict=True)
    ]
    return [(b.x0 - a.x1) / digit for own in inside for a, b in pairwise(own)]


@pytest.mark.parametrize("panels", [1, 2, 3])
@pytest.mark.parametrize(("low", "high"), [(-0.165, -0.11), (-0.0031, 0.0002), (-40.5, 1200.0), (0.55, 0.93)])
def test_labels_of_neighbouring_ticks_do_not_touch(panels: int, low: float, high: float) -> None:
    dots = {"topk, λ = 0.03": figures.Dot((low + high) / 2, low, high)}
    found = gaps(figures.dot_plot({f"delta {i}": {"mean": dots} for i in range(panels)}))
    assert len(found) >= panels
    assert min(found) > 0.5
