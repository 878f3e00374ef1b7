"""A rank that something happens to: `FAULT=<what>:<rank>:<step>`, steps counted from 1 in this process."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from model import worker
from model.causal_lm import CausalLM

what, rank, step = os.environ["FAULT"].split(":")
steps = iter(range(1, 1000))
ordinary = CausalLM.training_step


def training_step(module: CausalLM, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
    if next(steps) == int(step) and os.environ["RANK"] == rank:
        if what == "raise":
            raise ValueError("this rank can read no more")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    return ordinary(module, batch, batch_idx)


if __name__ == "__main__":
    CausalLM.training_step = training_step  # type: ignore[method-assign]
    worker.main(Path(sys.argv[1]))
