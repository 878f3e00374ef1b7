"""Intervals: against published values, against their definitions, and by how often they cover the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.evaluation.statistics import Z95, share, wilson, win_rate

# R. G. Newcombe (1998), "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, table I, method 3.
NEWCOMBE = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
SCORES = st.floats(0, 1)


@pytest.mark.parametrize(("successes", "n", "low", "high"), NEWCOMBE)
def test_wilson_intervals_are_the_published_ones(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def by_bisection(share_: float, n: int, side: int) -> float:
    """The p on one side of a share at which the normal test of p gives |z| = Z95: the definition of the Wilson interval."""
    near, far = share_, (0.0 if side < 0 else 1.0)
    for _ in range(200):
        middle = (near + far) / 2
        inside = abs(share_ - middle) <= Z95 * math.sqrt(middle * (1 - middle) / n)
        near, far = (middle, far) if inside else (near, middle)
    return near


@given(st.integers(1, 2_000).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_wilson_intervals_hold_what_a_normal_test_does_not_refuse(case: tuple[int, int]) -> None:
    halves, n = case
    low, high = wilson(halves / 2, n)
    assert low == pytest.approx(by_bisection(halves / 2 / n, n, -1), abs=1e-9)
    assert high == pytest.approx(by_bisection(halves / 2 / n, n, 1), abs=1e-9)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_hold_the_share_stay_within_zero_and_one_and_mirror(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1 and low < high
    assert wilson(n - successes, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_nothing_measured_is_anything_between_zero_and_one() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    value, n = share([])
    assert math.isnan(value) and n == 0
    result = win_rate([], [])
    assert math.isnan(result["win_rate"]) and (result["n"], result["ci_low"], result["ci_high"]) == (0, 0.0, 1.0)


@given(st.lists(st.booleans(), min_size=1))
def test_a_share_is_the_mean_and_its_number(values: list[bool]) -> None:
    assert share(values) == (pytest.approx(np.mean(values)), len(values))


def test_the_bound_is_the_normal_quantile() -> None:
    assert pytest.approx(0.975, abs=1e-8) == (1 + math.erf(Z95 / math.sqrt(2))) / 2


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2), st.floats(0, 0.5))
def test_wins_ties_and_losses_are_all_pairs_and_ties_count_half(pairs: list[tuple[float, float]], tie: float) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    result = win_rate(ours, theirs, tie=tie)
    wins = sum(a > b and a - b >= tie for a, b in pairs)
    losses = sum(b > a and b - a >= tie for a, b in pairs)
    assert (result["wins"], result["losses"], result["ties"]) == (wins, losses, len(pairs) - wins - losses)
    assert result["n"] == len(pairs)
    assert result["win_rate"] == pytest.approx((wins + 0.5 * result["ties"]) / len(pairs))
    assert 0 <= result["ci_low"] <= result["win_rate"] + 1e-12 and result["win_rate"] - 1e-12 <= result["ci_high"] <= 1


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1), st.floats(0, 0.5))
def test_the_other_sides_win_rate_is_the_mirror_image(pairs: list[tuple[float, float]], tie: float) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = win_rate(ours, theirs, tie=tie), win_rate(theirs, ours, tie=tie)
    assert (other["wins"], other["losses"], other["ties"]) == (one["losses"], one["wins"], one["ties"])
    assert other["win_rate"] == pytest.approx(1 - one["win_rate"])
    assert (other["ci_low"], other["ci_high"]) == (pytest.approx(1 - one["ci_high"]), pytest.approx(1 - one["ci_low"]))


def test_the_interval_of_a_win_rate_is_that_of_the_mean() -> None:
    ours, theirs = [0.9, 0.5, 0.1, 0.8, 0.7, 0.3], [0.1, 0.5, 0.9, 0.2, 0.7, 0.1]
    outcomes = np.array([1, 0.5, 0, 1, 0.5, 1])
    half = Z95 * outcomes.std(ddof=1) / math.sqrt(6)
    result = win_rate(ours, theirs)
    assert result["ci_low"] == pytest.approx(outcomes.mean() - half)
    assert result["ci_high"] == pytest.approx(min(1.0, outcomes.mean() + half))


def test_equal_scores_are_ties_even_where_no_difference_counts_as_one() -> None:
    assert win_rate([0.5, 0.7], [0.5, 0.6], tie=0.0)["ties"] == 1


@pytest.mark.parametrize("value", [1.0, 0.0, 0.5])
def test_outcomes_that_are_all_the_same_still_leave_room_for_doubt(value: float) -> None:
    result = win_rate([value] * 40, [0.5] * 40)
    assert result["win_rate"] == value
    assert 0.05 < result["ci_high"] - result["ci_low"] < 0.35


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        win_rate([0.1, 0.2], [0.1])


@pytest.mark.parametrize(("p", "n"), [(0.03, 400), (0.2, 150), (0.5, 60), (0.9, 300)])
def test_wilson_intervals_cover_the_truth_in_about_nineteen_of_twenty_samples(p: float, n: int) -> None:
    drawn = np.random.default_rng(0).binomial(n, p, size=4_000)
    intervals = {int(k): wilson(int(k), n) for k in np.unique(drawn)}
    covered = np.mean([intervals[int(k)][0] <= p <= intervals[int(k)][1] for k in drawn])
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize(("win", "tie", "n"), [(0.5, 0.1, 200), (0.3, 0.5, 150), (0.6, 0.2, 80)])
def test_win_rate_intervals_cover_the_truth_in_about_nineteen_of_twenty_samples(win: float, tie: float, n: int) -> None:
    chance = np.random.default_rng(1)
    truth = win + tie / 2
    covered = 0
    for _ in range(1_500):
        ours = chance.choice([1.0, 0.5, 0.0], p=[win, tie, 1 - win - tie], size=n).tolist()
        result = win_rate(ours, [0.5] * n)
        covered += result["ci_low"] <= truth <= result["ci_high"]
    assert 0.93 <= covered / 1_500 <= 0.97
