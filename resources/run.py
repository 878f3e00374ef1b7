"""What an asset's body holds while it makes an artifact: its inputs, and everything it may write or report."""

import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import dagster as dg
import polars as pl
from pydantic import Field

from resources.disk import parquet_bytes, pretty_json
from resources.environment import carbon as carbon_of
from resources.environment import gpu_watts
from resources.errors import TampuError
from resources.manifests import MANIFEST, Artifact
from resources.rounds import Round
from resources.tables import rows_of
from resources.torchrun import Session

if TYPE_CHECKING:
    from model.execution import Execution, Torchrun
    from model.resume import Resume

RESERVED = frozenset(
    (
        "applied",
        "code_version",
        "data_version",
        "key",
        "manifest",
        "path",
        "profile",
        "reused",
        "seconds",
        "warning",
    )
)
PLOT_BYTES = 200_000
PREVIEW_ROWS = 20
PREVIEW_LETTERS = 300


@dataclass(frozen=True)
class Check:
    """A check that an asset promises to report. A blocking one that fails keeps everything after it from running."""

    name: str
    blocking: bool = False
    description: str = ""


class ExecutionConfig(dg.Config):
    """How a training is run: what is not in `NOT_IDENTITY` rounds in other places, and so counts.

    Of `NOT_IDENTITY` the launcher alone rounds otherwise, as another machine does: machines and numbers of processes never count.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = tuple(
        f"execution.{name}"
        for name in ("save_every_steps", "save_every_minutes", "activation_checkpointing", "tensorboard", "launcher", "processes", "strategy")
    )
    launcher: Literal["in process", "torchrun"] = Field(default="in process", description="torchrun: in several processes (not PPO)")
    processes: int | None = Field(default=None, ge=1, description="processes of torchrun; default: one a GPU")
    strategy: Literal["ddp", "fsdp2"] = Field(default="ddp", description="of torchrun: whole copies, or sharded (not reward models)")
    save_every_steps: int | None = Field(default=None, ge=1, description="steps between two saves of the state that a training can go on from")
    save_every_minutes: float | None = Field(default=1.0, gt=0, description="minutes between two such saves; with both, whichever comes first")
    activation_checkpointing: bool = Field(default=False, description="compute activations again in the backward pass: less memory, more time")
    tensorboard: bool = Field(default=False, description="event files below $TAMPU_HOME/tensorboard (extra tensorboard)")
    accumulate: int = Field(default=1, ge=1, description="parts in which a step's batch is read, for one update: less memory (not in PPO)")
    compile: bool = Field(default=False, description="give the layers to torch.compile (not in PPO)")


@dataclass(frozen=True)
class Request:
    """What a `files` callable may look at to name the raw files of an asset."""

    asset: str
    partition: str | None
    profile: str
    config: Any
    home: Path


@dataclass(frozen=True)
class Input:
    """An artifact that is read, and as what: `parent`, `batch`, `previous` or `history`.

    `name` is what the body asks for; for `previous` it can be another asset than the artifact's own.
    """

    relation: str
    name: str
    artifact: Artifact


@dataclass
class Run:
    """One asset being made. Everything written here becomes the artifact if the body ends well, and nothing if not."""

    asset: str
    partition: str | None
    profile: str
    round: Round | None
    directory: Path
    inputs: Sequence[Input]
    declared: Mapping[str, frozenset[str]]
    checks: Mapping[str, Check]
    files: Mapping[str, Path]
    resources: Any
    states: Path
    home: Path
    say: Callable[[str], None]
    pipes: Session
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    previews: dict[str, str] = field(default_factory=dict)
    plots: list[str] = field(default_factory=list)
    reported: dict[str, dict[str, Any]] = field(default_factory=dict)
    cited: list[dict[str, str | None]] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    unversioned: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Asset and partition, for progress lines."""
        return f"{self.asset}[{self.partition}]" if self.partition else self.asset

    @property
    def this_round(self) -> Round:
        """The record of the round, for an asset that has rounds."""
        if self.round is None:
            raise TampuError(f"{self.asset} has no rounds, and its body asked for one")
        return self.round

    # Inputs

    def parent(self, asset: str) -> Artifact:
        """The artifact of a declared parent. Raises TampuError when it stands for several (use `parents`)."""
        found = self.parents(asset)
        if len(found) != 1:
            raise TampuError(f"{self.asset} reads {len(found)} artifacts of {asset}: ask for them with run.parents")
        return found[0]

    def parents(self, asset: str) -> list[Artifact]:
        """All artifacts of a declared parent: a round's preference batches, or every partition of a partitioned one."""
        self._check_declared("parents", asset)
        return [one.artifact for one in self.inputs if one.relation in ("parent", "batch") and one.name == asset]

    def previous(self, asset: str) -> Artifact:
        """What stands for `asset` in the round before, as pinned in this round's record.

        For the first round, `rlhf/chat_model` is `sft/model`. Raises TampuError when the record has none; ask
        `has_previous` first where that is expected.
        """
        self._check_declared("previous", asset)
        for one in self.inputs:
            if one.relation == "previous" and one.name == asset:
                return one.artifact
        name = self.round.round if self.round else "no round"
        raise TampuError(f"the record of {name} pins no {asset} of a round before: ask run.has_previous first")

    def has_previous(self, asset: str) -> bool:
        """Whether this round's record pins `asset` of the round before."""
        self._check_declared("previous", asset)
        return any(one.relation == "previous" and one.name == asset for one in self.inputs)

    def history(self, asset: str) -> list[Artifact]:
        """The asset's artifacts of all earlier rounds, oldest first, pinned in this round's record."""
        self._check_declared("history", asset)
        return [one.artifact for one in self.inputs if one.relation == "history" and one.name == asset]

    def _check_declared(self, kind: str, asset: str) -> None:
        """An asset may read only what it declares, else the key would not know."""
        if asset not in self.declared[kind]:
            known = ", ".join(sorted(self.declared[kind])) or "none"
            raise TampuError(f"{self.asset} does not declare {asset!r} in its {kind} ({known}): add it to the decorator")

    def file(self, name: str) -> Path:
        """Path of a raw file that the asset's `files` named."""
        if name not in self.files:
            raise TampuError(f"{self.asset} names no raw file {name!r}: it names {', '.join(self.files) or 'none'}")
        return self.files[name]

    def resume(self, config: ExecutionConfig) -> "Resume":
        """For `fit`: a training that was interrupted goes on when an artifact of the same key is made again."""
        from model.resume import Resume

        artifact = {"artifact": f"{self.asset} {self.states.name}"}
        return Resume(self.states, config.save_every_steps, config.save_every_minutes, artifact, self.say)

    def execution(self, config: ExecutionConfig) -> "Execution":
        """For `fit`: how the training is run. Raises TampuError for processes that no launcher starts, and where their number is not known."""
        from model.execution import Execution

        folder = self.home / "tensorboard" / self.asset / self.states.name
        return Execution(
            config.accumulate,
            config.activation_checkpointing,
            config.compile,
            folder if config.tensorboard else None,
            self._torchrun(config),
        )

    def _torchrun(self, config: ExecutionConfig) -> "Torchrun | None":
        if config.launcher == "in process":
            if config.processes not in (None, 1):
                raise TampuError(
                    f"{self.label}: execution.processes is {config.processes}, and execution.launcher is 'in process': set it to 'torchrun'"
                )
            if config.strategy != "ddp":
                raise TampuError(
                    f"{self.label}: execution.strategy is {config.strategy!r}, and execution.launcher is 'in process': set it to 'torchrun'"
                )
            return None
        import torch

        from model.execution import Torchrun

        processes = config.processes or torch.cuda.device_count()
        if not processes:
            raise TampuError(f"{self.label}: torchrun starts one process a GPU, and there is none here: set execution.processes")
        if torch.cuda.is_available() and processes > torch.cuda.device_count():
            raise TampuError(
                f"{self.label}: execution.processes is {processes}, and there are {torch.cuda.device_count()} GPUs: one process a GPU at most"
            )
        return Torchrun(processes, config.strategy, worker="resources.worker", session=lambda: self.pipes(self._hear))

    def _hear(self, facts: Mapping[str, Any]) -> None:
        """What the ranks of a training told of themselves."""
        processes, seconds = facts["processes"], facts["seconds"]
        memory = ", ".join(f"{peak / 2**30:.2f}" for peak in facts["peak_memory_bytes"])
        told = f"{processes} processes ({facts['strategy']}, {facts['backend']}, {facts['device']}), {seconds:.1f} s, peak memory {memory} GiB"
        self.note("torchrun", told)
        self.say(f"{self.label}: trained by {told}")
        if facts["backend"] == "nccl":  # the processor's share is measured with that of all children
            self.carbon(facts["device"], processes * seconds / 3600, gpu_watts(facts["device"])[0])

    # Files of the artifact

    def path(self, name: str, *, versioned: bool = True) -> Path:
        """Path for a file or folder of the artifact that the body writes itself; the folders above it are made.

        A file that tells hours, energy or dates is not `versioned`: it is kept and hashed like any other, and the data version leaves it
        out, so that another machine's clock makes no other version.
        """
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or pure.parts[0] == MANIFEST:
            raise TampuError(f"{self.asset} cannot write {name!r}: give a name inside the artifact, not {MANIFEST}")
        path = self.directory / pure
        path.parent.mkdir(parents=True, exist_ok=True)
        if not versioned:
            self.unversioned.append(pure.as_posix())
        return path

    def write_frame(self, name: str, frame: pl.DataFrame) -> None:
        """Write a frame as Parquet, rows in the order given; equal frames give equal bytes."""
        self.path(name).write_bytes(parquet_bytes(frame))

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON with sorted keys; equal values give equal bytes. Not-a-number is refused with TampuError."""
        try:
            text = pretty_json(value)
        except (ValueError, TypeError) as error:
            raise TampuError(f"{self.asset} cannot write {name!r} as JSON: {error}") from None
        self.path(name).write_text(text)

    def rows(self, table: str, rows: pl.DataFrame | Sequence[Mapping[str, Any]]) -> None:
        """Rows for a table of the warehouse; calls add up. They are kept in the artifact, published once it is whole.

        Raises TampuError for a table or column that `resources.tables` does not know, or a value of another type.
        """
        self.tables.setdefault(table, []).append(rows_of(table, rows))

    def plot(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure as `plots/<name>.png` without dates or versions in it, and close it.

        Raises TampuError when it stays above 200 KB: metadata travels to every browser that looks at the asset.
        """
        content = b""
        for dots in (90, 60):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=dots, bbox_inches="tight", metadata={"Software": None})
            content = buffer.getvalue()
            if len(content) <= PLOT_BYTES:
                break
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)
        if len(content) > PLOT_BYTES:
            raise TampuError(f"plot {name!r} of {self.asset} has {len(content)} bytes, above {PLOT_BYTES}: draw fewer points")
        self.path(f"plots/{name}.png").write_bytes(content)
        self.plots.append(name)

    # Reports

    def metric(self, name: str, value: float) -> None:
        """A number for the manifest, and for Dagster's plots over time.

        Raises TampuError when it is not finite, or named like a fact that every artifact has (`seconds`, `key`, …).
        """
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise TampuError(f"metric {name!r} of {self.asset} is {value!r}: it must be a finite number")
        if name in RESERVED:
            raise TampuError(f"metric {name!r} of {self.asset} has a name that every artifact uses: call it otherwise")
        self.metrics[name] = number

    def note(self, name: str, markdown: str) -> None:
        """Markdown for people, shown in Dagster."""
        self.notes[name] = markdown

    def table(self, name: str, frame: pl.DataFrame, rows: int = PREVIEW_ROWS) -> None:
        """The first rows of a frame for people, shown in Dagster."""
        self.previews[name] = markdown_table(frame, rows)

    def check(self, name: str, *, passed: bool, description: str = "", **numbers: Any) -> None:
        """The outcome of a declared check, with the numbers it rests on."""
        if name not in self.checks:
            raise TampuError(f"{self.asset} declares no check {name!r}: it declares {', '.join(self.checks) or 'none'}")
        plain = {key: value.item() if hasattr(value, "item") else value for key, value in numbers.items()}
        self.reported[name] = {
            "name": name,
            "passed": bool(passed),
            "blocking": self.checks[name].blocking,
            "description": description,
            "numbers": plain,
        }

    def cite(self, asset: str, data_version: str, *, partition: str | None = None, key: str | None = None) -> None:
        """Say which artifact raw input was made with (the models whose answers a preference file holds).

        It enters manifest and lineage, not the key: the file's own hash already decides that.
        """
        entry = {"asset": asset, "partition": partition, "key": key, "data_version": data_version}
        if entry not in self.cited:
            self.cited.append(entry)

    def carbon(self, device: str, device_hours: float, watts: float) -> None:
        """Work done for this asset on devices that this process does not see (another machine, a launched job)."""
        self.devices.append({**carbon_of(device, device_hours, watts), "assumed": False})

    def log(self, line: str) -> None:
        """A line for the run's log; keep it to a few a minute."""
        self.say(line)

    def finish(self) -> None:
        """Write collected rows. Raises TampuError when a declared check was not reported."""
        if missing := [name for name in self.checks if name not in self.reported]:
            raise TampuError(f"{self.asset} declares the check {missing[0]!r} and did not report it: call run.check in its body")
        for table, frames in self.tables.items():
            self.write_frame(f"rows/{table}.parquet", pl.concat(frames))


def markdown_table(frame: pl.DataFrame, rows: int = PREVIEW_ROWS) -> str:
    """The first rows as a Markdown table; long texts are cut, and a last line says how many rows there are."""
    head = [f"| {' | '.join(_cell(name) for name in frame.columns)} |", f"|{' --- |' * frame.width}"]
    body = [f"| {' | '.join(_cell(value) for value in row)} |" for row in frame.head(rows).iter_rows()]
    more = [f"\n{rows} of {frame.height:,} rows"] if frame.height > rows else []
    return "\n".join([*head, *body, *more])


def _cell(value: Any) -> str:
    """One value as a cell of a Markdown table."""
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    text = text if len(text) <= PREVIEW_LETTERS else text[: PREVIEW_LETTERS - 1] + "…"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
