"""Training runs: AdamW with the recipe's schedule, and a Lightning Trainer that only trains, so that a run is a function of its inputs."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from model import ranks
from model.execution import Execution, prepared, tensorboard_logger
from model.flops import peak_flops
from model.precision import TRAINER_PRECISION, Precision
from model.progress import Progress, Speed
from model.resume import Resume, Saver, settings_of

WAY_OUT = "lower the learning rate or look at the batch"
NAMED = 16  # examples of a batch that an error names


@dataclass(frozen=True)
class Optimization:
    """AdamW, the learning rate schedule and the gradient clip (arXiv 2307.09288 §2.2 gives the defaults).

    "cosine" rises linearly over `warmup_steps` updates and falls to `floor` times the peak at update `steps`; "constant" has neither
    floor nor fall. Raises ValueError, naming the field, for a value out of range.
    """

    learning_rate: float
    warmup_steps: int
    steps: int
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    clip: float = 1.0
    floor: float = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.steps < 1 or not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps} and steps {self.steps}; 0 <= warmup_steps <= steps, and steps >= 1")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; it must be 'cosine' or 'constant'")

    def rate(self, update: int) -> float:
        """Learning rate of update number `update`, the first being 1: 0 at 0, the peak at `warmup_steps`, floor·peak at `steps`."""
        if update < self.warmup_steps:
            return self.learning_rate * update / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = min(1.0, (update - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.learning_rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    def optimizer(self, module: nn.Module, *, name: str = "") -> torch.optim.AdamW:
        """AdamW over the trainable parameters; `name` prefixes its metrics where a run has several.

        Decay acts on matrices and not on norm gains (our choice: the paper does not tell).
        """
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [{**group, "name": name} for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)

    def configure(self, module: nn.Module) -> OptimizerLRSchedulerConfig:
        """What a Lightning module returns from `configure_optimizers`."""
        optimizer = self.optimizer(module)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: self.rate(k + 1) / self.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass
class FitResult:
    """What a run leaves beside the weights. `rows` (step, tokens, metric, value) depend on the inputs only; `seconds` do not.

    `flops` are the model FLOPs of all steps (`model.flops`), 0 where the module does not tell them.
    """

    rows: list[dict] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0


class Loader(Protocol):
    """A stream of batches that can begin at any of them; any iterable will do where going on may build the batches before."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def batches(self, start: int = 0, parts: int = 1) -> Iterator[dict[str, Any]]:
        """The stream from batch number `start` on, each batch in so many parts, one after the other.

        A part tells the module what it is a part of: the values that `training_step` returns for the parts have the whole batch's as
        their mean. A loader whose batches are not read in parts has no `parts`.
        """
        ...

    def rows(self, batch: int) -> list[int]:
        """Numbers of the examples in that batch, for messages."""
        ...


def fit(
    module: LightningModule,
    loader: Loader | Iterable[dict[str, Any]],
    *,
    steps: int,
    seed: int,
    precision: Precision = "fp32",
    threads: int | None = None,
    log_every: int = 10,
    progress: str | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    validate_every: int | None = None,
    validate_first: bool = False,
    checkpoints_at: Sequence[int] = (),
    on_checkpoint: Callable[[int], None] | None = None,
    resume: Resume | None = None,
    execution: Execution | None = None,
) -> FitResult:
    """Train `module` in place on the first `steps` batches of the loader, on the GPU if there is one.

    The module has an `optimization`, and its `training_step` returns `loss` (none if it optimizes by hand), `tokens` (int), `metrics`
    (name to number) and, if it knows them, `flops`; it may set `trainer.should_stop`. Rows hold the means of loss, gradient norm and
    metrics over the last `log_every` steps, and what `validate()` returns, called every `validate_every` steps, at the end, and
    (`validate_first`) before the first. `on_checkpoint(step)` is called after the steps in `checkpoints_at`. `progress` names the run in a
    progress bar, or in plain lines where stderr is no terminal, with tokens a second and MFU. Nothing is written to disk without `resume`
    or `execution.tensorboard`. With `execution.torchrun` other processes do all this, and what they leave comes back (`model.launching`).

    With `resume` the run saves its state now and then and goes on from the newest one that it finds, to the weights and rows of a run that
    was never cut off: the hooks of checkpoints that lie behind are called again first, with the weights of their step. SIGTERM, or Ctrl-C,
    saves and then takes its way after the current step; a second one takes it at once. `log_every` may change in between, and what of
    `execution` leaves the bits alone, nothing else.

    Raises ValueError, naming step and batch, for a loss or gradient that is not finite, before the update; for a loader with too few
    batches; and, naming what differs, for a saved state of another training.
    """
    if precision not in TRAINER_PRECISION:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(TRAINER_PRECISION)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if precision != "fp32" and not module.automatic_optimization:
        raise ValueError(f"{type(module).__name__} optimizes by hand and sets its own precision; call fit with precision='fp32'")
    execution = execution or Execution()
    if not module.automatic_optimization and (execution.accumulate > 1 or execution.compile):
        raise ValueError(f"{type(module).__name__} optimizes by hand; call fit without accumulate and compile")
    if execution.accumulate > 1 and not hasattr(loader, "batches"):
        raise ValueError(f"a {type(loader).__name__} can not give its batches in parts; call fit without accumulate")
    if execution.torchrun is not None and not ranks.started():
        from model.launching import launch

        return launch(
            module,
            loader,
            validate=validate,
            on_checkpoint=on_checkpoint,
            resume=resume,
            execution=execution,
            steps=steps,
            seed=seed,
            precision=precision,
            threads=threads,
            log_every=log_every,
            progress=progress,
            validate_every=validate_every,
            validate_first=validate_first,
            checkpoints_at=list(checkpoints_at),
        )
    run = _Run(loader, execution.accumulate, steps, log_every, validate, validate_every, validate_first, checkpoints_at, on_checkpoint)
    run.name, run.precision, run.tell = progress if ranks.first() else None, precision, execution.tell
    result = run.result
    with _quiet(), _threads(threads), prepared(module, execution), torch.random.fork_rng():
        if resume is not None:
            settings = settings_of(
                module=module,
                optimization=cast(Optimization, module.optimization),
                loader=loader,
                steps=steps,
                seed=seed,
                precision=precision,
                validate_every=validate_every,
                validate_first=validate_first,
                checkpoints_at=sorted(checkpoints_at),
                accumulate=execution.accumulate,
                compile=execution.compile,
            )
            run.saver = Saver(resume, settings, run)
            run.saver.restore(module, on_checkpoint)
            if result.steps == steps or run.saver.ended:
                module.on_train_end()  # Lightning leaves an empty run out, with its hooks
                return result
        torch.manual_seed(seed)
        trainer = Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=ranks.count(),
            strategy=_strategy(execution),
            use_distributed_sampler=False,
            precision=TRAINER_PRECISION[precision],
            max_epochs=1,
            limit_train_batches=(steps - result.steps) * execution.accumulate,
            accumulate_grad_batches=execution.accumulate,
            callbacks=[run, run.saver] if run.saver else [run],
            logger=tensorboard_logger(execution.tensorboard, result.steps) if execution.tensorboard else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, train_dataloaders=_Batches(loader, result.steps, execution.accumulate * ranks.count()))
        except SystemExit:
            if isinstance(run.exception, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit and ignores further ones
                raise KeyboardInterrupt from None
            raise
        finally:
            run.close()
            if run.saver:
                run.saver.release()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
    if run.saver:
        run.saver.deliver()
    if result.steps < steps and not trainer.should_stop:
        raise ValueError(f"the loader ended after {result.steps} batches; {steps} steps were asked for")
    result.seconds = run.seconds()
    return result


@dataclass(frozen=True)
class _Batches:
    """The loader from a batch on, as one loader: Lightning would take a list for a list of loaders. Ranks take a part in turn."""

    loader: Loader | Iterable[dict[str, Any]]
    start: int
    parts: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not hasattr(self.loader, "batches"):
            return itertools.islice(self.loader, self.start, None)
        stream = self.loader.batches(self.start) if self.parts == 1 else self.loader.batches(self.start, self.parts)
        return itertools.islice(stream, ranks.number(), None, ranks.count())


class _Run(Callback):
    """Checks, clipping, metric rows and progress of one run."""

    def __init__(
        self,
        loader: Loader | Iterable[dict[str, Any]],
        parts: int,
        steps: int,
        log_every: int,
        validate: Callable[[], dict[str, float]] | None,
        validate_every: int | None,
        validate_first: bool,
        checkpoints_at: Sequence[int],
        on_checkpoint: Callable[[int], None] | None,
    ) -> None:
        self.loader, self.parts, self.steps, self.log_every = loader, parts, steps, log_every
        self.validate, self.validate_every, self.validate_first = validate, validate_every, validate_first
        self.checkpoints_at, self.on_checkpoint = frozenset(checkpoints_at), on_checkpoint
        self.result = FitResult()
        self.window: dict[str, list[float]] = {}
        self.exception: BaseException | None = None
        self.saver: Saver | None = None
        self.waiting: list[dict[str, Any]] = []  # what the parts of the present batch gave
        self.name: str | None = None
        self.tell: Callable[[str], None] | None = None
        self.precision: Precision = "fp32"
        self.progress: Progress | None = None
        self.speed: Speed | None = None
        self.trainer: Trainer | None = None
        self.began = time.perf_counter()

    def seconds(self) -> float:
        """Time of the run so far, that of processes before this one included."""
        return self.result.seconds + time.perf_counter() - self.began

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self.result), "seconds": self.seconds(), "window": self.window}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.window = state_dict.pop("window")
        vars(self.result).update(state_dict)
        self.began = time.perf_counter()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        if self.validate is not None and self.validate_first and not self.result.steps:
            with torch.no_grad():
                self._rows(self.validate())
        self.speed = Speed(self.result, lambda: ranks.count() * peak_flops(module.device, self.precision))
        if self.name:
            self.progress = Progress(self.name, self.steps, self.speed, self.tell)

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise ValueError(f"the loss at step {self.result.steps + 1} is {loss.item()}, on {self._batch()}; {WAY_OUT}")

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = ranks.number_of(nn.utils.clip_grad_norm_(parameters, cast(Optimization, module.optimization).clip))
        if not math.isfinite(norm):
            raise ValueError(f"the gradient norm at step {self.result.steps + 1} is {norm}, on {self._batch()}; {WAY_OUT}")
        name = optimizer.param_groups[0]["name"]
        self._note(f"{name}_gradient_norm".lstrip("_"), norm)
        self._note(f"{name}_learning_rate".lstrip("_"), optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        result = self.result
        self.waiting.append(outputs)
        if len(self.waiting) < self.parts:
            return
        parts, self.waiting = self.waiting, []
        # Lightning has divided the losses by the number of parts.
        means = {"train_loss": sum(float(part["loss"]) for part in parts)} if "loss" in outputs else {}
        means |= {name: sum(float(part["metrics"][name]) for part in parts) / len(parts) for name in outputs["metrics"]}
        counts = [sum(int(part["tokens"]) for part in parts), sum(float(part.get("flops", 0.0)) for part in parts)]
        tokens, flops, *values = ranks.summed([*counts, *means.values()])
        result.steps += 1
        result.tokens += int(tokens)
        result.flops += flops
        for name, value in zip(means, values, strict=True):
            self._note(name, value / ranks.count())
        due = self.validate_every and result.steps % self.validate_every == 0
        if self.validate is not None and (due or result.steps == self.steps or trainer.should_stop):
            with torch.no_grad():
                self._rows(self.validate())
        if result.steps % self.log_every == 0 or result.steps == self.steps or trainer.should_stop:
            self._rows({name: sum(values) / len(values) for name, values in self.window.items()})
            if trainer.logger is not None and self.speed is not None:
                trainer.logger.log_metrics(self.speed.rates(), result.steps)
            self.window = {}
        if self.on_checkpoint is not None and result.steps in self.checkpoints_at:
            if self.saver:
                self.saver.keep(module, result.steps)
            self.on_checkpoint(result.steps)
        if self.progress:
            self.progress.update(result)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.exception = exception

    def close(self) -> None:
        if self.progress:
            self.progress.close()

    def _note(self, name: str, value: float) -> None:
        self.window.setdefault(name, []).append(value)

    def _rows(self, metrics: dict[str, float]) -> None:
        step, tokens = self.result.steps, self.result.tokens
        self.result.rows += [{"step": step, "tokens": tokens, "metric": name, "value": float(value)} for name, value in metrics.items()]
        if self.trainer is not None and self.trainer.logger is not None:
            self.trainer.logger.log_metrics(metrics, step)

    def _batch(self) -> str:
        """The present batch by its number, with its examples and its part where they are known."""
        number = self.result.steps
        parts, part = self.parts * ranks.count(), len(self.waiting) * ranks.count() + ranks.number() + 1
        named = f"batch {number}" + (f", part {part} of {parts}" if parts > 1 else "")
        if not hasattr(self.loader, "rows"):
            return named
        rows = self.loader.rows(number)
        return f"{named} (examples {', '.join(map(str, rows[:NAMED]))}{f', … {len(rows)} in all' if len(rows) > NAMED else ''})"


def _strategy(execution: Execution) -> Any:
    """Lightning's strategy: in one process, or as a rank of those that `execution.torchrun` describes."""
    if execution.torchrun is None:
        return "auto"
    if execution.torchrun.strategy == "ddp":
        return DDPStrategy()
    return ModelParallelStrategy(data_parallel_size=ranks.count(), tensor_parallel_size=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notices about devices, loaders and its cloud out of the output; its errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*before.*optimizer\.step\(\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` CPU threads (None: as it is)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
