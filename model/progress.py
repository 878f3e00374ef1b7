"""What a person sees of a training while it runs: steps, loss, tokens a second and MFU."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from model.training import FitResult


class Speed:
    """Tokens a second since this was made, and the MFU: model FLOPs a second as a share of the device's `peak()` FLOP/s.

    `result` is the run's own; what it holds already is not counted. There is no MFU where a module does not tell its FLOPs.
    """

    def __init__(self, result: FitResult, peak: Callable[[], float]) -> None:
        self.result, self.peak = result, peak
        self.tokens, self.flops, self.began = result.tokens, result.flops, time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    def rates(self) -> dict[str, float]:
        """`tokens_per_second`, and `mfu` where it is known."""
        seconds = self.seconds()
        rates = {"tokens_per_second": (self.result.tokens - self.tokens) / seconds}
        if flops := self.result.flops - self.flops:
            rates["mfu"] = flops / seconds / self.peak()
        return rates


class Progress:
    """A bar on a terminal; elsewhere, or with `tell`, a line about every tenth of the steps."""

    def __init__(self, name: str, steps: int, speed: Speed, tell: Callable[[str], None] | None = None) -> None:
        self.name, self.steps, self.speed, self.tell = name, steps, speed, tell
        done = speed.result.steps
        self.bar = tqdm(total=steps, initial=done, desc=name, unit="step", file=sys.stderr) if tell is None and sys.stderr.isatty() else None

    def update(self, result: FitResult) -> None:
        """After a step."""
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(", ".join(self._figures(result)))
        elif result.steps * 10 // self.steps > (result.steps - 1) * 10 // self.steps:
            line = ", ".join((f"step {result.steps}/{self.steps}", *self._figures(result), f"{self.speed.seconds():.0f} s"))
            if self.tell is not None:
                self.tell(f"{self.name}: {line}")
            else:
                print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def _figures(self, result: FitResult) -> list[str]:
        latest = {row["metric"]: row["value"] for row in result.rows[-20:]}
        rates = self.speed.rates()
        figures = [f"loss {latest['train_loss']:.3f}"] if "train_loss" in latest else []
        figures.append(f"{rates['tokens_per_second']:,.0f} tokens/s")
        return [*figures, f"MFU {rates['mfu']:.0%}"] if "mfu" in rates else figures

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
