"""The order in which training data are seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Shuffled:
    """The numbers 0 to count-1 without end: all in an order drawn from the seed, then all in another order, and so on.

    `skip` begins that many numbers further on: it draws the orders before and builds nothing else.
    """

    def __init__(self, count: int, seed: int | Sequence[int], *, skip: int = 0) -> None:
        self.count, self.random = count, np.random.default_rng(seed)
        passes, within = divmod(skip, count) if count else (0, 0)
        for _ in range(passes):
            self.random.permutation(count)
        self.order = np.empty(0, dtype=np.int64)
        self.take(within)

    def take(self, number: int) -> np.ndarray:
        """The next numbers, int64 [number]."""
        if number and not self.count:
            raise ValueError(f"{number} were asked for, and there are none")
        while len(self.order) < number:
            self.order = np.concatenate((self.order, self.random.permutation(self.count)))
        taken, self.order = np.split(self.order, [number])
        return taken
