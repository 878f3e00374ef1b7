"""Agreement among raters beyond chance: Gwet's AC1 and AC2 with 95 % intervals.

Written out here because the library that has both coefficient and interval (irrCAC 0.4.4) demands scipy 1.12.0 and pandas below 3,
which nothing else in the environment does; the tests compare with its numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assets.evaluation.statistics import Z95


@dataclass(frozen=True)
class Agreement:
    """A coefficient and its interval; NaN where fewer than two items have two ratings, or where nobody could have disagreed."""

    value: float
    ci_low: float
    ci_high: float
    items: int
    raters: int
    ratings: int


def ordinal_weights(categories: int) -> np.ndarray:
    """Gwet's ordinal weights float64 [q, q]: 1 - C(|k - l| + 1, 2) / C(q, 2). The paper does not say which weights it used; our choice."""
    distance = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories)))
    return 1 - distance * (distance + 1) / 2 / math.comb(categories, 2)


def gwet(ratings: Sequence[Mapping[str, int]], categories: int, *, weighted: bool) -> Agreement:
    """AC2 with ordinal weights, or AC1 (`weighted` false), of items as {rater: category from 0 on}; raters may skip items.

    K. L. Gwet, Handbook of Inter-Rater Reliability (2014), chapters 5 and 6: AC = (pa - pe) / (1 - pe), with pa over the items that
    two or more rated; the variance is the one over items, the interval Student's on n - 1 degrees of freedom, cut at 1. Items that
    nobody rated do not count. Raises ValueError for a category out of range or fewer than two categories.
    """
    if categories < 2:
        raise ValueError(f"{categories} categories: agreement needs at least two")
    counts = np.zeros((len(ratings), categories))
    for row, item in enumerate(ratings):
        for rater, category in item.items():
            if not 0 <= category < categories:
                raise ValueError(f"item {row}, rater {rater}: category {category} is not in 0 to {categories - 1}")
            counts[row, category] += 1
    counts = counts[counts.sum(1) > 0]
    raters = {rater for item in ratings for rater in item}
    size = {"items": len(counts), "raters": len(raters), "ratings": int(counts.sum())}
    n, per_item = len(counts), counts.sum(1)
    several = per_item >= 2
    if several.sum() < 2:
        return Agreement(math.nan, math.nan, math.nan, **size)
    weights = ordinal_weights(categories) if weighted else np.eye(categories)
    pairs = np.maximum(per_item * (per_item - 1), 1)
    agreed = (counts * (counts @ weights - 1)).sum(1) / pairs * several
    observed = agreed.sum() / several.sum()
    prevalence = (counts / per_item[:, None]).mean(0)
    scale = weights.sum() / (categories * (categories - 1))
    chance = scale * (prevalence * (1 - prevalence)).sum()
    value = (observed - chance) / (1 - chance)
    item_chance = scale * (counts @ (1 - prevalence)) / per_item
    item_value = n / several.sum() * (agreed - chance * several) / (1 - chance)
    linear = item_value - 2 * (1 - value) * (item_chance - chance) / (1 - chance)
    error = math.sqrt(((linear - value) ** 2).sum() / (n * (n - 1)))
    half = student_95(n - 1) * error
    return Agreement(float(value), float(value - half), float(min(1.0, value + half)), **size)


def student_95(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to within 0.5 % from 3 degrees on and exact at 1 and 2 (Abramowitz and Stegun 26.7.5)."""
    if degrees < 1:
        return math.nan
    if degrees <= 2:
        return (12.706205, 4.302653)[degrees - 1]
    z, v = Z95, degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, start=1))
