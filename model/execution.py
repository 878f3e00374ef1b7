"""How a training is run on the machine at hand: in parts, with less memory, compiled, watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from model.llama import Trunk
from model.ranks import Strategy


@dataclass(frozen=True)
class Torchrun:
    """Several processes of one node, one a GPU or, where there is none, on the CPU: each reads a part of every batch (`model.ranks`).

    With `ddp` each holds the whole model and optimizer, with `fsdp2` a part of every weight, gradient and optimizer state. `timeout` is in
    seconds: how long a rank waits for the others. `worker` is the module that runs as a rank; `session` surrounds the run and gives
    environment variables for it. Raises ValueError for `processes` below 1 and an unknown strategy.
    """

    processes: int
    strategy: Strategy = "ddp"
    timeout: float = 1800.0
    worker: str = "model.worker"
    session: Callable[[], AbstractContextManager[Mapping[str, str]]] = lambda: nullcontext({})

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes is {self.processes}; it must be at least 1")
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy is {self.strategy!r}; it must be one of {', '.join(get_args(Strategy))}")


@dataclass(frozen=True)
class Execution:
    """Ways to run the same training.

    `accumulate` reads a step's batch in so many parts, one after the other, for one update that differs from that of the whole batch in
    rounding only. `activation_checkpointing` keeps each layer's input alone for the backward pass and computes the rest again: the same
    bits in a third more time (arXiv 1604.06174). `compile` gives the layers to `torch.compile`, which rounds in other places.
    `tensorboard` is a folder for TensorBoard's event files. `torchrun` trains in several processes, whose updates differ from those of one
    in rounding only. `tell` gets the progress lines instead of standard error. Raises ValueError for `accumulate` below 1.
    """

    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    tensorboard: Path | None = None
    torchrun: Torchrun | None = None
    tell: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}; it must be at least 1")


@contextmanager
def prepared(module: nn.Module, execution: Execution) -> Iterator[None]:
    """Let the networks in `module` checkpoint their activations and compile their layers, until the context ends."""
    trunks = [part for part in module.modules() if isinstance(part, Trunk)]
    if (execution.activation_checkpointing or execution.compile) and not trunks:
        raise ValueError(f"{type(module).__name__} holds no model.llama.Trunk whose layers could be checkpointed or compiled")
    try:
        for trunk in trunks:
            if execution.activation_checkpointing:
                trunk.activation_checkpointing = True
            if execution.compile:
                for layer in trunk.layers:
                    layer.compile()
        yield
    finally:
        for trunk in trunks:
            if execution.activation_checkpointing:
                trunk.activation_checkpointing = False
            if execution.compile:
                for layer in trunk.layers:
                    layer._compiled_call_impl = None


def tensorboard_logger(folder: Path, after_step: int) -> TensorBoardLogger:
    """Lightning's logger for TensorBoard, writing into `folder`; points after that step, from a run that was cut off, are dropped.

    Raises ValueError, with the way to install it, where TensorBoard is missing.
    """
    try:
        return TensorBoardLogger(folder.parent, name=folder.name, version="", purge_step=after_step + 1 if after_step else None)
    except ModuleNotFoundError:
        raise ValueError("TensorBoard is not installed; `pip install 'tampu[tensorboard]'`, or train without `tensorboard`") from None
