"""Exact resume: states of a training on disk, so that a run that was cut off ends with the bytes of one that was not.

<folder>/state-<step>-<sha256>.pt        all that a run needs to go on after that step
<folder>/checkpoint-<step>-<sha256>.pt   the weights at a mid-run checkpoint, for whose hook they may be needed again
<folder>/.<kind>-<step>.tmp              one being written; nobody reads it

A state is what Lightning keeps in a checkpoint (`state_dict`, `optimizer_states`, `lr_schedulers`, and what the module's hook
`on_save_checkpoint` adds), with torch's random states and the rows so far. Files are torch's own, read with `weights_only=True`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from model import ranks

FORMAT = 1  # of a state's content; states of another one are refused
KEPT = 2  # Our choice: the newest state, and the one before in case the disk damages it.
NAME = re.compile(r"(state|checkpoint)-(\d{9})-([0-9a-f]{64})\.pt")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _nothing(line: str) -> None:
    """What ranks but the first say."""


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Resume:
    """Where a training keeps its states, and how often it saves one: every so many steps, or minutes, or whichever comes first.

    How often decides nothing about the result. `config` holds what the training depends on and `fit` does not see (the model's shape, the
    data's version), as plain values: a state is refused where one differs. One training at a time may use a folder; who has what it made
    removes the folder. `say` gets a line when a run goes on from a state, or cannot.
    """

    folder: Path
    every_steps: int | None = None
    every_minutes: float | None = 1.0
    config: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = _stderr

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive, or None")


class Damaged(Exception):
    """A file that is not what was written; the message goes on from the file's name."""


class States:
    """The files in a folder of states: each appears whole or not at all, under a name that holds its hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.tmp"):
            path.unlink()

    def write(self, kind: str, step: int, content: Mapping[str, Any]) -> str:
        """Save `content`, read it back, and only then give it its name, which is returned.

        Raises OSError for troubles of the disk, and TypeError for content that could not be loaded again.
        """
        temporary = self.folder / f".{kind}-{step:09}.tmp"
        with temporary.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save(content, cast(IO[bytes], hashed))
            except RuntimeError:
                if hashed.trouble is not None:  # torch tells only that writing failed
                    raise hashed.trouble from None
                raise
            file.flush()
            os.fsync(file.fileno())
        digest = hashed.digest.hexdigest()
        if unknown := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
            raise TypeError(f"a state can hold tensors and plain values only, not {', '.join(unknown)}; look at {kind} {step}")
        if _sha256(temporary) != digest:
            raise OSError(errno.EIO, "what was written reads back as something else", str(temporary))
        path = self.folder / f"{kind}-{step:09}-{digest}.pt"
        os.replace(temporary, path)
        _fsync(self.folder)
        return path.name

    def verify(self, name: str) -> None:
        """Raises Damaged when a file is missing or has another hash than its name."""
        path, match = self.folder / name, NAME.fullmatch(name)
        if not path.is_file():
            raise Damaged("is missing")
        if match is None or _sha256(path) != match[3]:
            raise Damaged("is damaged: its hash is not the one that it was written with")

    def read(self, name: str) -> dict[str, Any]:
        """What `write` was given, with its tensors on the CPU. Raises Damaged."""
        self.verify(name)
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def states(self) -> list[str]:
        """Names of the states, the newest first."""
        return sorted((path.name for path in self.folder.glob("state-*.pt") if NAME.fullmatch(path.name)), reverse=True)

    def newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest state that is intact with the checkpoints that it names, or None; others are named in a line and removed."""
        for name in self.states():
            at_fault = name
            try:
                state = self.read(name)
                for at_fault in state["checkpoints"].values():
                    self.verify(at_fault)
                return state
            except Damaged as problem:
                say(f"the saved training {self.folder / at_fault} {problem}; it is removed")
                (self.folder / name).unlink()
                (self.folder / at_fault).unlink(missing_ok=True)
        return None

    def forget_old(self) -> None:
        """Remove all states but the newest ones."""
        for name in self.states()[KEPT:]:
            (self.folder / name).unlink()


class Saver(Callback):
    """Saves the states of a run, when one is due and when the process is told to end, and puts a run back into its newest state.

    `run` is the callback that keeps the run's own record: its `result.steps` are counted up after each step, and Lightning's `state_dict`
    and `load_state_dict` are asked of it. Give Lightning this callback after that one.
    """

    def __init__(self, resume: Resume, settings: Mapping[str, Any], run: Any) -> None:
        self.resume, self.settings, self.run = resume, {"format": FORMAT, **settings, **resume.config}, run
        if not ranks.first():
            ranks.wait_for_all()  # the first one removes what is damaged
        self.states = States(resume.folder)
        self.state = self.states.newest(resume.say if ranks.first() else _nothing)
        if ranks.first():
            ranks.wait_for_all()
        ranks.wait_for_all()  # nobody writes while another one reads
        self.checkpoints: dict[int, str] = {}
        self.step = self.saved = 0
        self.ended = self.stuck = False
        self.clock = time.monotonic()
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)}

    # Going on

    def restore(self, module: LightningModule, on_checkpoint: Callable[[int], None] | None) -> None:
        """Put module and run into the newest state; hooks of checkpoints that lie behind are called again, each with its weights.

        Raises ValueError, naming what differs, for the state of another training.
        """
        if self.state is None:
            return
        state = self.state
        _refuse_others(state["settings"], self.settings, self.states.folder)
        for step, name in state["checkpoints"].items():
            if on_checkpoint is not None:
                module.load_state_dict(self.states.read(name)["state_dict"])
                on_checkpoint(step)
        module.load_state_dict(state["state_dict"])
        module.on_load_checkpoint(state)
        self.run.load_state_dict(state["run"])
        self.checkpoints, self.step, self.saved, self.ended = dict(state["checkpoints"]), state["step"], state["step"], state["ended"]
        made, now = state["made_with"], _made_with()
        differing = [f"{name} {made.get(name)} then and {value} now" for name, value in now.items() if made.get(name) != value]
        said = f" ({', '.join(differing)}: the last digits may differ)" if differing else ""
        if ranks.first():
            self.resume.say(f"the training goes on after step {self.step:,}, from {self.states.folder}{said}")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if (state := self.state) is not None:
            for optimizer, kept in zip(trainer.optimizers, state["optimizer_states"], strict=True):
                ranks.load_optimizer(optimizer, kept)
            for config, kept in zip(trainer.lr_scheduler_configs, state["lr_schedulers"], strict=True):
                config.scheduler.load_state_dict(kept)
            torch.set_rng_state(state["random"]["cpu"])
            if state["random"]["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["random"]["cuda"][0])
            self.state = None
        for number in self.handlers:
            signal.signal(number, self._note)

    # Saving

    def keep(self, module: LightningModule, step: int) -> None:
        """Keep the weights of a mid-run checkpoint beside the states, which name it. Without them no later state can be gone on from."""
        weights = ranks.whole(module.state_dict())
        if not ranks.first():
            return
        try:
            self.checkpoints[step] = self.states.write("checkpoint", step, {"state_dict": weights})
        except OSError as error:
            self.stuck = True
            self.resume.say(
                f"the checkpoint of step {step:,} could not be saved in {self.states.folder} ({error}); the training continues, "
                f"and no state after step {self.saved:,} will be there to go on from"
            )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.run.result.steps == self.step:
            return  # a part of a batch
        self.step = self.run.result.steps
        self.ended = trainer.should_stop
        steps, minutes = self.resume.every_steps, self.resume.every_minutes
        late = minutes is not None and time.monotonic() - self.clock >= 60 * minutes
        if ranks.some(ranks.first() and late) or (steps is not None and self.step % steps == 0):
            self.save(trainer, module)
        if ranks.some(self.signal is not None):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if ranks.some(self.signal is not None) and ranks.some(self.saved < self.step):  # ranks gather what is sharded together
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the state after this step, and drop the oldest once it is on disk and verified. What the disk can not take is said.

        Ranks gather what is sharded, and the first one writes it: a state is the same for any number of processes.
        """
        state = {
            "step": self.step,
            "ended": self.ended,
            "settings": self.settings,
            "made_with": _made_with(),
            "state_dict": ranks.whole(module.state_dict()),
            "optimizer_states": [ranks.whole(optimizer.state_dict()) for optimizer in trainer.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "random": {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []},
            "run": self.run.state_dict(),
            "checkpoints": self.checkpoints,
        }
        module.on_save_checkpoint(state)
        if not ranks.first():
            self.saved = self.step
            return
        if self.stuck:
            self.clock = time.monotonic()
            return
        try:
            self.states.write("state", self.step, state)
            self.saved = self.step
            self.states.forget_old()
        except OSError as error:
            # Better a long training that can only go on from an older state than none.
            self.resume.say(f"the state of step {self.step:,} could not be saved in {self.states.folder} ({error}); the training continues")
        self.clock = time.monotonic()

    # Signals

    def _note(self, number: int, frame: Any) -> None:
        """The first signal ends the run after this step, a second one at once."""
        if self.signal is None:
            self.signal = number
        else:
            signal.signal(number, self.handlers[number])
            signal.raise_signal(number)

    def release(self) -> None:
        """Put the former handlers back."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def deliver(self) -> None:
        """Hand a signal that was noted to its former handler.

        Where that is the system, which would end the process on the spot, it ends as a Python program does, with the usual exit code.
        """
        if self.signal is None:
            return
        (self.resume.say if ranks.first() else _nothing)(
            f"told to end by {signal.Signals(self.signal).name}: the training is saved up to step {self.saved:,} and can go on there"
        )
        if self.handlers[self.signal] is not signal.SIG_DFL:
            signal.raise_signal(self.signal)
        raise SystemExit(128 + self.signal)


def settings_of(**parts: Any) -> dict[str, Any]:
    """What decides a training, as plain values by name (`loader.batch_size`, `module.config.clip`, `module.model.config.dim`).

    Of an object these are its fields: plain values, dataclasses with their fields, types and shapes of arrays, lengths of lists; and the
    `config` of each network in a module. What is in the data is left to `Resume.config`.
    """
    settings: dict[str, Any] = {}
    for name, part in parts.items():
        settings |= _described(name, part)
        if not is_dataclass(part):
            named = {key: value for key, value in getattr(part, "__dict__", {}).items() if not key.startswith("_") and key != "training"}
            if isinstance(part, nn.Module):
                named |= {f"{key}.config": getattr(child, "config", None) for key, child in part.named_children()}
            for key, value in named.items():
                if not callable(value):
                    settings |= _described(f"{name}.{key}", value)
    return settings


def _described(name: str, value: Any) -> dict[str, Any]:
    if value is None or type(value) in (bool, int, float, str):
        return {name: value}
    if isinstance(value, list | tuple):
        short = len(value) <= 16 and all(type(item) in (bool, int, float, str) for item in value)
        return {name: list(value) if short else f"{len(value)} items"}
    if isinstance(value, np.ndarray | torch.Tensor):
        return {name: f"{value.dtype} {list(value.shape)}"}
    described: dict[str, Any] = {name: type(value).__name__}
    if is_dataclass(value):
        for one in fields(value):
            described |= _described(f"{name}.{one.name}", getattr(value, one.name))
    return described


def _refuse_others(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    nothing = "(none)"
    differing = [
        f"{name} was {saved.get(name, nothing)!r} and is {now.get(name, nothing)!r}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name, nothing) != now.get(name, nothing)
    ]
    if differing:
        raise ValueError(f"{folder} holds the state of another training: {'; '.join(differing)}. Train with that, or in another folder")


def _made_with() -> dict[str, Any]:
    """What the same numbers can round differently on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"torch": str(torch.__version__), "device": device, "threads": torch.get_num_threads(), "processes": ranks.count()}


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.trouble: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.trouble = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
