"""Shares and win rates with 95 % intervals."""

import math
from collections.abc import Sequence

Z95 = 1.959964


def share(values: Sequence[bool | float]) -> tuple[float, int]:
    """Mean of 0/1 values and their number; NaN of none."""
    return (sum(values) / len(values) if values else math.nan), len(values)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share; (0, 1) of nothing. Holds at 0 and 1, where the normal interval collapses."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def win_rate(ours: Sequence[float], theirs: Sequence[float], *, tie: float = 0.02) -> dict[str, float | int]:
    """Wins, ties and losses of paired scores; equal scores and differences below `tie` are ties and count half.

    The interval is the normal one of the mean of {1, 1/2, 0} over prompts, cut to [0, 1]. Where all outcomes are the same their variance
    says nothing, and the Wilson interval stands in for it. Of no pair at all, the rate is NaN and the interval (0, 1).
    """
    outcomes = [0.5 if a == b or abs(a - b) < tie else float(a > b) for a, b in zip(ours, theirs, strict=True)]
    n = len(outcomes)
    mean = sum(outcomes) / n if n else math.nan
    if len(set(outcomes)) < 2:
        low, high = wilson(sum(outcomes), n)
    else:
        half = Z95 * math.sqrt(sum((value - mean) ** 2 for value in outcomes) / (n - 1) / n)
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return {
        "wins": outcomes.count(1.0),
        "ties": outcomes.count(0.5),
        "losses": outcomes.count(0.0),
        "n": n,
        "win_rate": mean,
        "ci_low": low,
        "ci_high": high,
    }
