"""CE-Bench scores follow their definition, stay below the ceiling, and are calibrated to their own null."""

from __future__ import annotations

import math
import resource
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sae_lens import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from small_saes import bank, cache, random_sae, trained
from torch import Tensor

from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import ceiling
from husai_lib.measures import contrastive
from husai_lib.measures.contrastive import (
    ContrastiveScore,
    contrastive_scores,
    first_story_weights,
    max_z,
    score,
    story_differences,
)
from husai_lib.params.benchmarks import ContrastiveParams, WidthStudyParams
from husai_lib.randomness import numpy_generator

assert cache  # the fixture that every test of this module uses

PUBLISHED, RELEASED = ContrastiveParams(), ContrastiveParams(independence="as_released")
BOTH = pytest.mark.parametrize("params", [PUBLISHED, RELEASED], ids=["as published", "as released"])


def of_stories(latents: list[list[Any]], params: ContrastiveParams = PUBLISHED) -> ContrastiveScore:
    """The score of an 'SAE' whose latents are given: a list of tokens for each story, two stories a pair."""
    rows = np.array([token for story in latents for token in story], dtype=np.float32)
    stories = SimpleNamespace(rows=rows, offsets=np.cumsum([0, *map(len, latents)]))
    return score(SimpleNamespace(encode=lambda x: x), stories, params)  # type: ignore[arg-type]


def made_up(pairs: int, d_sae: int, seed: int, tokens: tuple[int, int] = (12, 9)) -> list[list[Any]]:
    """Stories whose tokens all come from one pool: sparse, non-negative latents of unequal sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(size=d_sae)
    return [list(sizes * np.maximum(rng.standard_normal((n, d_sae)) - 0.7, 0)) for _ in range(pairs) for n in tokens]


def numbers(found: ContrastiveScore) -> dict[str, float]:
    """All scores by their names."""
    return asdict(found)


# Four latents, two pairs of stories.
# Pair 1: one token [4 0 0 0], one token [0 0 0 0].        |V1 - V2| = [4 0 0 0],  I = [2 0 0 0]
# Pair 2: three tokens [0 2 0 0], one token [0 0 2 0].     |V1 - V2| = [0 2 2 0],  I = [0 1.5 0.5 0], by tokens
TOY = [[[4, 0, 0, 0]], [[0, 0, 0, 0]], [[0, 2, 0, 0]] * 3, [[0, 0, 2, 0]]]
# z of [4 0 0 0]: mean 1, deviations [3 -1 -1 -1], sum of squares 12, std sqrt(12 / 3) = 2, max z = 3 / 2
# z of [0 2 2 0]: mean 1, deviations [-1 1 1 -1], sum of squares 4, std sqrt(4 / 3), max z = sqrt(3 / 4)
TOY_CONTRASTIVE = (1.5 + math.sqrt(3 / 4)) / 2


@BOTH
def test_scores_of_the_toy_as_published(params: ContrastiveParams) -> None:
    # Ibar = [1 0.75 0.25 0], |I - Ibar| = [1 0.75 0.25 0] for both pairs: mean 0.5,
    # deviations [0.5 0.25 -0.25 -0.5], sum of squares 0.625, max z = 0.5 / sqrt(0.625 / 3) = sqrt(1.2)
    # sums: [5 0.75 0.25 0]: mean 1.5, deviations [3.5 -0.75 -1.25 -1.5], sum of squares 16.625
    #       [1 2.75 2.25 0]: mean 1.5, deviations [-0.5 1.25 0.75 -1.5], sum of squares 4.625
    found = of_stories(TOY, params)
    assert found.contrastive == pytest.approx(TOY_CONTRASTIVE, abs=1e-12)
    assert found.independence == pytest.approx(math.sqrt(1.2), abs=1e-12)
    expected = (3.5 * math.sqrt(3 / 16.625) + 1.25 * math.sqrt(3 / 4.625)) / 2
    assert found.interpretability == pytest.approx(expected, abs=1e-12)


@BOTH
def test_scores_of_the_toy_as_released(params: ContrastiveParams) -> None:
    # Ibar = 0. I = [2 0 0 0]: max z 1.5; I = [0 1.5 0.5 0]: mean 0.5, deviations [-0.5 1 0 -0.5], sum of squares
    # 1.5, max z = 1 / sqrt(0.5). Sums: [6 0 0 0]: 1.5; [0 3.5 2.5 0]: mean 1.5, deviations [-1.5 2 1 -1.5],
    # sum of squares 9.5, max z = 2 * sqrt(3 / 9.5)
    found = of_stories(TOY, params)
    assert found.contrastive == pytest.approx(TOY_CONTRASTIVE, abs=1e-12)
    assert found.independence_as_released == pytest.approx((1.5 + math.sqrt(2)) / 2, abs=1e-12)
    assert found.interpretability_as_released == pytest.approx((1.5 + 2 * math.sqrt(3 / 9.5)) / 2, abs=1e-12)


def test_l0_is_the_mean_count_of_latents_that_are_not_zero() -> None:
    assert of_stories(TOY).l0 == (1 + 0 + 3 + 1) / 6


def test_calibration_is_by_the_null_of_the_same_deals() -> None:
    # Only pair 2 varies: its four tokens dealt 3 + 1 leave either the token of story 2 alone ([0 2 2 0], as it is)
    # or one of the other three: V1 = [0 4/3 2/3 0], V2 = [0 2 0 0], |V1 - V2| = [0 2/3 2/3 0], of the same max z.
    found = of_stories(TOY)
    assert found.calibrated_contrastive is None  # though the two kinds of deals may differ by rounding
    # Interpretability does change: [1 0.75 0.25 0] + [0 2/3 2/3 0] in those deals.
    deals = first_story_weights(3, 4, 100, numpy_generator(0, "deal of the tokens of pair 1"))
    alone = ~deals[1:, 3]
    other = torch.tensor([1, 0.75 + 2 / 3, 0.25 + 2 / 3, 0])
    values = np.where(alone, 1.25 * math.sqrt(3 / 4.625), float(max_z(other)))
    expected = (1.25 * math.sqrt(3 / 4.625) - values.mean()) / values.std(ddof=1)
    assert found.calibrated == pytest.approx(expected, abs=1e-9)


def test_calibration_as_released_is_of_the_released_interpretability() -> None:
    # As above, with I = [0 1.5 0.5 0] as it is: [0 3.5 2.5 0], and [0 1.5 0.5 0] + [0 2/3 2/3 0] in the other deals.
    deals = first_story_weights(3, 4, 100, numpy_generator(0, "deal of the tokens of pair 1"))
    as_it_is, other = 2 * math.sqrt(3 / 9.5), float(max_z(torch.tensor([0, 1.5 + 2 / 3, 0.5 + 2 / 3, 0])))
    values = np.where(~deals[1:, 3], as_it_is, other)
    expected = (as_it_is - values.mean()) / values.std(ddof=1)
    assert of_stories(TOY, RELEASED).calibrated == pytest.approx(expected, abs=1e-4)


def test_a_null_that_varies_by_rounding_only_calibrates_nothing() -> None:
    null = 8.0 + 1e-15 * torch.arange(100, dtype=torch.float64)
    assert null.std() > 0
    assert contrastive._calibrated(torch.cat([torch.tensor([8.0 + 1e-13]), null])) is None


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_max_z_of_two_parts_is_that_of_the_whole(n: int, others: int, seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).exponential(size=n + others))
    assert float(max_z(values[:n], values[n:])) == pytest.approx(float(max_z(values)), rel=1e-12)


def test_equal_values_in_two_parts_have_no_z() -> None:
    assert float(max_z(torch.full((3,), 0.1), torch.full((4,), 0.1))) == 0
    assert float(max_z(torch.zeros(3), torch.tensor([0.0, 1.0]))) == pytest.approx(ceiling(5))


@BOTH
def test_scores_are_those_of_a_dense_computation_in_numpy(params: ContrastiveParams) -> None:
    # Most latents never fire in most pairs, one always fires, one never does anywhere.
    stories = made_up(4, 30, 0)
    for number, story in enumerate(stories):
        for token in story:
            token[5 + number // 2 : 29] = 0
            token[0], token[29] = token[0] + 1, 0
    deals = [first_story_weights(12, 21, 100, numpy_generator(0, f"deal of the tokens of pair {p}")) for p in range(4)]
    latents = np.array([[*stories[2 * p], *stories[2 * p + 1]] for p in range(4)], dtype=np.float32).astype(float)
    means = latents.mean(1)
    released = params is RELEASED
    deviations = np.abs(means - (0 if released else means.mean(0)))

    def z(u: np.ndarray) -> float:
        return float((u.max() - u.mean()) / u.std(ddof=1))

    def average(deal: int, plus: np.ndarray) -> float:
        dealt = [of[deal].numpy() for of in deals]
        return fmean(
            z(np.abs(x[d].mean(0) - x[~d].mean(0)) + of) for x, d, of in zip(latents, dealt, plus, strict=True)
        )

    found = of_stories(stories, params)
    independence = found.independence_as_released if released else found.independence
    interpretability = found.interpretability_as_released if released else found.interpretability
    assert independence == pytest.approx(np.mean([z(u) for u in deviations]), rel=1e-9)
    for plus, plain, calibrated in (
        (0 * deviations, found.contrastive, found.calibrated_contrastive),
        (deviations, interpretability, found.calibrated),
    ):
        scores = np.array([average(deal, plus) for deal in range(101)])
        assert plain == pytest.approx(scores[0], rel=1e-9)
        assert calibrated == pytest.approx((scores[0] - scores[1:].mean()) / scores[1:].std(ddof=1), rel=1e-6)


def test_max_z_is_that_of_numpy() -> None:
    u = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    expected = ((u - u.mean(1, keepdims=True)) / u.std(1, ddof=1, keepdims=True)).max(1)
    np.testing.assert_allclose(max_z(torch.from_numpy(u)), expected, rtol=1e-5)


@given(arrays(np.float32, st.integers(2, 50), elements=st.floats(-1e6, 1e6, width=32)))
@settings(max_examples=100, deadline=None)
def test_no_score_exceeds_the_ceiling(u: np.ndarray) -> None:
    found = float(max_z(torch.from_numpy(u)))
    assert 0 <= found <= ceiling(len(u)) * (1 + 1e-9)


@given(st.integers(2, 5000), st.integers(0, 10**9), st.floats(2.0**-100, 2.0**100, width=32))
@settings(max_examples=50, deadline=None)
def test_one_latent_alone_attains_the_ceiling(d_sae: int, which: int, size: float) -> None:
    u = torch.zeros(d_sae)
    u[which % d_sae] = size
    assert float(max_z(u)) == pytest.approx(ceiling(d_sae), rel=1e-9)


def test_the_ceilings_of_the_usual_widths() -> None:
    widths = [1024, 2048, 3072, 32768]
    assert [round(ceiling(width), 1) for width in widths] == [32.0, 45.2, 55.4, 181.0]


@given(st.integers(0, 10**6), st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_the_order_and_a_common_scale_of_the_latents_change_nothing(seed: int, scale: float) -> None:
    stories = made_up(2, 10, seed)
    order = np.random.default_rng(seed).permutation(10)
    changed = [[scale * token[order] for token in story] for story in stories]
    for params in (PUBLISHED, RELEASED):
        before, after = of_stories(stories, params), of_stories(changed, params)
        assert numbers(after) == pytest.approx(numbers(before), rel=1e-4, abs=1e-4)


@BOTH
def test_the_order_of_the_pairs_changes_the_deals_only(params: ContrastiveParams) -> None:
    # The deals are drawn for pair 0, pair 1, ...; in another order a pair gets the deals of another. So the plain
    # scores stay as they are, and the calibrated ones move as they do with another seed: by about 1 / sqrt(100)
    # of a standard deviation and by a share 1 / sqrt(200) of themselves.
    stories = made_up(6, 32, 0)
    turned = [story for pair in (4, 2, 0, 5, 1, 3) for story in stories[2 * pair : 2 * pair + 2]]
    before, after = of_stories(stories, params), of_stories(turned, params)
    for name, value in numbers(before).items():
        tolerance = 0.5 + 0.3 * abs(value) if name.startswith("calibrated") else 1e-5
        assert getattr(after, name) == pytest.approx(value, abs=tolerance)
    assert after.calibrated_contrastive != before.calibrated_contrastive


def test_the_two_stories_of_a_pair_may_change_places() -> None:
    stories = made_up(3, 16, 0)
    swapped = [stories[i] for pair in range(3) for i in (2 * pair + 1, 2 * pair)]
    before, after = numbers(of_stories(stories)), numbers(of_stories(swapped))
    plain = [name for name in before if not name.startswith("calibrated")]
    assert [after[name] for name in plain] == pytest.approx([before[name] for name in plain], rel=1e-9)


@pytest.mark.parametrize("token", [np.zeros(8), np.full(8, 0.3), np.linspace(0.1, 0.9, 8)], ids=["0", "0.3", "varied"])
def test_latents_that_are_the_same_at_every_token_score_nothing(token: np.ndarray) -> None:
    found = of_stories([[token] * n for n in (11, 8, 5, 7)])
    assert (found.contrastive, found.independence, found.interpretability) == (0.0, 0.0, 0.0)
    assert (found.calibrated_contrastive, found.calibrated) == (None, None)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e30])
def test_equal_values_have_no_z(value: float) -> None:
    assert float(max_z(torch.full((3, 7), value)).abs().max()) == 0


@pytest.mark.parametrize("d_sae", [16, 128, 1024])
def test_stories_of_one_pool_average_0_once_calibrated_at_every_width(d_sae: int) -> None:
    # A calibrated score of such stories has a standard deviation of about 1: the mean of 500 sets of pairs has a
    # standard error of 0.045, so a bias of 0.2 would show.
    found = [of_stories(made_up(2, d_sae, seed, tokens=(5, 4))) for seed in range(500)]
    for scores in ([s.calibrated_contrastive for s in found], [s.calibrated for s in found]):
        assert 0.8 < np.std(scores) < 1.2
        assert abs(np.mean(scores)) < 0.1
    assert np.mean([s.contrastive for s in found]) > 1  # which the plain score does not see


def test_stories_that_differ_in_one_latent_score_far_above_their_null() -> None:
    # Of one pair the null is high too: whatever the deal, the stories differ most in that latent. Pairs add up.
    stories = made_up(40, 64, 0)
    for story in stories[::2]:
        for token in story:
            token[5] += 20
    found = of_stories(stories)
    assert found.calibrated_contrastive > 5  # type: ignore[operator]
    assert found.calibrated > 5  # type: ignore[operator]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_deal_gives_the_first_story_its_own_number_of_tokens(first: int, second: int, seed: int) -> None:
    deals = first_story_weights(first, first + second, 100, numpy_generator(seed, "deal"))
    assert deals.shape == (101, first + second)
    assert deals.sum(1).tolist() == [first] * 101
    assert deals[0].tolist() == [True] * first + [False] * second  # the stories as they are


def test_every_token_is_dealt_equally_often() -> None:
    share = first_story_weights(3, 12, 4000, numpy_generator(0, "deal"))[1:].double().mean(0)
    np.testing.assert_allclose(share, 3 / 12, atol=0.03)  # standard error 0.007


def test_differences_are_those_of_the_means_of_the_dealt_stories() -> None:
    latents = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 7.0]])
    deals = torch.tensor([[True, True, False], [False, True, False]])
    # means [2 1] and [5 7]; [3 2] and [3 3.5]
    assert story_differences(latents, deals).tolist() == [[3.0, 6.0], [0.0, 1.5]]


def test_a_story_without_a_token_is_named() -> None:
    stories = SimpleNamespace(rows=np.zeros((5, 3), np.float32), offsets=np.array([0, 1, 2, 5, 5]))
    with pytest.raises(DataError, match="story2 of pair 2 has no token left"):
        score(random_sae(0), stories, PUBLISHED)  # type: ignore[arg-type]


def test_stories_are_encoded_a_pair_at_a_time() -> None:
    rows: list[int] = []

    def encode(x: Tensor) -> Tensor:
        rows.append(len(x))
        return x

    stories = SimpleNamespace(rows=np.random.default_rng(0).random((40, 3)), offsets=np.arange(0, 41, 5))
    score(SimpleNamespace(encode=encode), stories, PUBLISHED)  # type: ignore[arg-type]
    assert rows == [10, 10, 10, 10] * 2


def resident() -> float:
    """Memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def test_200_pairs_need_no_more_memory_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    # The latents of a pair take 1.3 MB, those of all pairs 260 MB; the differences of its deals 3.3 MB and 660 MB.
    seen: list[float] = []

    def seeing(function: Any) -> Any:
        def seen_function(*arguments: Any) -> Any:
            seen.append(resident())
            return function(*arguments)

        return seen_function

    monkeypatch.setattr(contrastive, "first_story_weights", seeing(first_story_weights))
    directions = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0))
    sae = SimpleNamespace(encode=seeing(lambda x: (x @ directions).relu()))
    rows = np.random.default_rng(0).standard_normal((200 * 80, 4)).astype(np.float32)
    score(sae, SimpleNamespace(rows=rows, offsets=np.arange(0, len(rows) + 1, 40)), PUBLISHED)  # type: ignore[arg-type]
    assert len(seen) == 600  # two passes, and the deals of the second
    assert max(seen[:200]) - max(seen[:10]) < 100
    assert max(seen) - max(seen[:210]) < 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_latent_that_is_no_number_is_refused_and_the_pair_named(value: float) -> None:
    stories = made_up(2, 8, 0)
    stories[3][1][4] = value
    with pytest.raises(DataError, match="NaN or infinite on the stories of pair 2"):
        of_stories(stories)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_any_sae_lens_object_can_be_scored() -> None:
    rng = np.random.default_rng(0)
    rows, offsets = rng.standard_normal((40, 32)).astype(np.float32), np.arange(0, 41, 10)
    stories: Any = SimpleNamespace(rows=rows, offsets=offsets)
    shape: dict[str, Any] = {"d_in": 32, "d_sae": 64, "k": 8, "rescale_acts_by_decoder_norm": True}
    training = TopKTrainingSAE(TopKTrainingSAEConfig(**shape, use_sparse_activations=True))
    inference, half = TopKSAE(TopKSAEConfig(**shape)), TopKSAE(TopKSAEConfig(**shape, dtype="bfloat16"))
    for sae in (training, inference, half):
        sae.load_state_dict(random_sae(0).state_dict())
    assert score(training, stories, PUBLISHED) == score(inference, stories, PUBLISHED)
    found = score(half, stories, PUBLISHED)
    assert found.l0 == 8
    assert found.contrastive == pytest.approx(score(inference, stories, PUBLISHED).contrastive, rel=0.05)


def test_scores_are_in_the_order_of_the_saes_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    stories = bank(rng.standard_normal((80, 32)), list(range(0, 81, 10)))
    saes = [trained(random_sae(0)), trained(random_sae(1, "standard"))]
    made = 0

    def counted(*arguments: Any) -> ContrastiveScore:
        nonlocal made
        made += 1
        return score(*arguments)

    monkeypatch.setattr(contrastive, "score", counted)
    found = contrastive_scores(saes, stories, PUBLISHED)
    assert found == [score(one.sae, stories, PUBLISHED) for one in saes]
    assert contrastive_scores(saes[::-1], stories, PUBLISHED) == found[::-1]
    assert made == 2
    cut_elsewhere = bank(np.array(stories.rows), [0, 12, *range(20, 81, 10)])
    changes: list[tuple[Any, Any, ContrastiveParams]] = [
        (saes[0], stories, RELEASED),
        (saes[0], stories, ContrastiveParams(seed=1)),
        (saes[0], stories, ContrastiveParams(permutations=101)),
        (saes[0], cut_elsewhere, PUBLISHED),
        (trained(random_sae(0, k=9)), stories, PUBLISHED),
    ]
    other_study = ContrastiveParams(study=WidthStudyParams(ks=[2]))
    assert contrastive_scores(saes, stories, other_study) == found  # whose SAEs are others
    assert made == 2
    for number, (one, bank_of, params) in enumerate(changes, start=3):
        contrastive_scores([one], bank_of, params)
        assert made == number
