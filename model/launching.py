"""Training in several processes of one node: the job on disk, `torchrun`, and what comes back from its ranks.

<folder>/job.pt             all that a rank needs, plain values and tensors; read with `weights_only=True`
<folder>/failures.json      which ranks ended badly, and how; written by `model.torchrun`
<folder>/checkpoint-<step>/ weights at a mid-run checkpoint: model.safetensors, or shards and what they were consolidated to
<folder>/final/             weights at the end
<folder>/result.json        the run's record, written last
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file

from model.causal_lm import CausalLM, HeldOut, PackedLoader
from model.llama import LlamaConfig
from model.packing import Packed, Rows
from model.resume import Resume
from model.reward_training import Comparison, ComparisonLoader, Labelled, RewardTraining
from model.token_shards import StreamBlocks, TokenShards

if TYPE_CHECKING:
    from model.execution import Execution
    from model.training import FitResult

REPOSITORY = Path(__file__).resolve().parent.parent
ENDING = 90.0  # seconds that ranks have to save their state when they are told to end; torchrun kills them after 30
WAY_OUT = "set execution.launcher to 'in process'"


class RankFailed(RuntimeError):
    """A rank ended badly; the message has its number and its error."""


def launch(
    module: LightningModule,
    loader: Any,
    *,
    validate: Callable[[], dict[str, float]] | None,
    on_checkpoint: Callable[[int], None] | None,
    resume: Resume | None,
    execution: Execution,
    **arguments: Any,
) -> FitResult:
    """As `model.training.fit`, by the processes of `execution.torchrun`: weights and record come back here, then the hooks are called.

    `arguments` are the plain ones of `fit`. Raises ValueError for a training that the ranks could not do, and RankFailed, once all ranks
    are gone, when one of them ended badly.
    """
    from model.training import FitResult

    assert execution.torchrun is not None
    job = {**_described(module, loader, validate, execution), "fit": arguments, "execution": _plain(execution), "resume": None}
    if resume is not None:
        job["resume"] = {**vars(resume), "folder": str(resume.folder), "config": dict(resume.config), "say": None}
    with _folder(resume) as folder:
        torch.save(job, folder / "job.pt")
        _run(folder, execution)
        if not (folder / "result.json").is_file():
            raise RankFailed(f"the ranks ended without a result in {folder}; what they wrote on standard error says why")
        record = json.loads((folder / "result.json").read_text())
        for step in record.pop("checkpoints"):
            _load(module, folder / f"checkpoint-{step}")
            if on_checkpoint is not None:
                on_checkpoint(step)
        _load(module, folder / "final")
    return FitResult(**record)


def _load(module: LightningModule, folder: Path) -> None:
    """Weights that ranks wrote. Cloned by `load_state_dict` into the module's own tensors."""
    (path,) = folder.glob("*.safetensors")
    module.load_state_dict(load_file(path))


@contextmanager
def _folder(resume: Resume | None) -> Iterator[Path]:
    """A folder for a job, below that of the states if there is one (the disk that has room), which goes when the job is done."""
    if resume is not None:
        resume.folder.mkdir(parents=True, exist_ok=True)
        for left in resume.folder.glob("job-*"):  # by a process that was killed
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix="job-", dir=resume.folder if resume is not None else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, execution: Execution) -> None:
    """`torchrun` until it ends. Whatever ends this process, or the wait, ends the ranks, which may save their state first."""
    torchrun = execution.torchrun
    assert torchrun is not None
    command = [
        *(sys.executable, "-m", "model.torchrun", "--standalone", "--local-addr", "localhost", "--nproc-per-node", str(torchrun.processes)),
        *("-m", torchrun.worker, str(folder)),
    ]
    paths = [str(REPOSITORY), *(path for path in sys.path if path)]
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, processors // torchrun.processes))
    with torchrun.session() as environment:
        variables = {"OMP_NUM_THREADS": threads, **os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
        # In a session of its own Ctrl-C does not reach it: this process tells it once, and a second time would cut off the saving.
        process = subprocess.Popen(command, env=variables, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code:
        raise RankFailed(_told(folder, torchrun.processes, code))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()  # the ranks die with it
        process.wait()


def _told(folder: Path, processes: int, code: int) -> str:
    """The first rank that ended badly by itself, and its error."""
    path = folder / "failures.json"
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return f"torchrun and its {processes} ranks were told to end by {signal.Signals(code - 128).name}"
    if not path.is_file():
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"torchrun {how}, and none of its {processes} ranks told of an error; what it wrote on standard error says why"
    failures = json.loads(path.read_text())
    ended = (-signal.SIGTERM, 128 + signal.SIGTERM)  # by torchrun, because another rank had failed
    one = min(failures, key=lambda failure: (failure["exit_code"] in ended, failure["time"]))
    code = one["exit_code"]
    if one["error"]:
        how = f"failed: {one['error']}"
    elif code == 128 + signal.SIGTERM:
        how = "was told to end by SIGTERM"
    else:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}; its output says why"
    return f"rank {one['rank']} of {processes} {how}"


# Jobs as plain values


def _described(module: LightningModule, loader: Any, validate: Callable[[], dict[str, float]] | None, execution: Execution) -> dict[str, Any]:
    """Module, loader and validation as plain values and tensors. Raises ValueError for what has no such description."""
    assert execution.torchrun is not None
    kind, processes, strategy = type(module).__name__, execution.torchrun.processes, execution.torchrun.strategy
    if type(module) not in (CausalLM, RewardTraining):
        raise ValueError(f"launcher 'torchrun' trains base models, fine-tunes and reward models, and no {kind}; {WAY_OUT}")
    if type(module) is RewardTraining and strategy == "fsdp2":
        raise ValueError(
            "strategy 'fsdp2' can not train reward models: ranks read their pairs in different numbers of groups, and sharded weights "
            f"need equal ones; set execution.strategy to 'ddp', or {WAY_OUT}"
        )
    trained = cast(CausalLM | RewardTraining, module)
    described: dict[str, Any] = {
        "module": {
            "kind": kind,
            "config": trained.model.config.to_dict(),
            "optimization": asdict(trained.optimization),
            "safety_weight": getattr(module, "safety_weight", None),
        },
        "weights": module.state_dict(),
        "validate": None,
    }
    if type(loader) is PackedLoader:
        described["loader"] = {"packed": _rows(loader.packed), "batch_size": loader.batch_size, "seed": loader.seed}
    elif type(loader) is ComparisonLoader:
        named = {name: getattr(loader, name) for name in ("batch_size", "seed", "margin", "group_tokens")}
        pairs, labelled = ([tuple(vars(one).values()) for one in some] for some in (loader.comparisons, loader.labelled))
        described["loader"] = {"comparisons": pairs, "labelled": labelled, **named}
    else:
        raise ValueError(f"launcher 'torchrun' can not hand a {type(loader).__name__} to its ranks; {WAY_OUT}")
    parts = processes * execution.accumulate
    if parts > loader.batch_size:
        raise ValueError(
            f"a batch of {loader.batch_size} rows can not be divided among {processes} processes that read it in {execution.accumulate} parts "
            "each; make the batch larger, or set execution.processes or execution.accumulate lower"
        )
    if validate is not None:
        if not isinstance(validate, HeldOut) or validate.model is not trained.model:
            raise ValueError(f"launcher 'torchrun' can not hand this validation to its ranks; {WAY_OUT}")
        described["validate"] = {"packed": _rows(validate.packed), "total_bytes": validate.total_bytes}
    return described


def _rows(packed: Rows) -> dict[str, Any]:
    """Rows in memory as tensors, those of a stream on the disk as the place of its shards, which the ranks map too."""
    if isinstance(packed, StreamBlocks):
        stream = packed.stream
        return {"folder": str(stream.folder.absolute()), "name": stream.name, "context": packed.context, "bos_id": packed.bos_id}
    if isinstance(packed, Packed):
        return {name: torch.from_numpy(array) for name, array in vars(packed).items()}
    raise ValueError(f"launcher 'torchrun' can not hand rows of a {type(packed).__name__} to its ranks; {WAY_OUT}")


def _plain(execution: Execution) -> dict[str, Any]:
    assert execution.torchrun is not None
    values = {name: getattr(execution, name) for name in ("accumulate", "activation_checkpointing", "compile")}
    torchrun = {name: getattr(execution.torchrun, name) for name in ("processes", "strategy", "timeout")}
    return {**values, "tensorboard": None if execution.tensorboard is None else str(execution.tensorboard), "torchrun": torchrun}


def built(job: Mapping[str, Any]) -> tuple[LightningModule, Any, HeldOut | None]:
    """Module, loader and validation from their description."""
    from model.llama import Llama
    from model.reward import RewardModel
    from model.training import Optimization

    described = job["module"]
    config, optimization = LlamaConfig.from_dict(described["config"]), Optimization(**described["optimization"])
    with torch.device("meta"):
        network = Llama(config) if described["kind"] == "CausalLM" else RewardModel(config)
    module: CausalLM | RewardTraining
    if isinstance(network, Llama):
        module = CausalLM(network, optimization)
    else:
        module = RewardTraining(network, optimization, safety_weight=described["safety_weight"])
    module.load_state_dict({name: tensor.clone() for name, tensor in job["weights"].items()}, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    loader: PackedLoader | ComparisonLoader
    if isinstance(network, Llama):
        loader = PackedLoader(_packed(job["loader"]["packed"]), job["loader"]["batch_size"], seed=job["loader"]["seed"])
    else:
        values = dict(job["loader"])
        pairs, labelled = [Comparison(*one) for one in values.pop("comparisons")], [Labelled(*one) for one in values.pop("labelled")]
        loader = ComparisonLoader(pairs, values.pop("batch_size"), labelled=labelled, **values)
    validate = None
    if job["validate"] is not None and isinstance(network, Llama):
        validate = HeldOut(network, _packed(job["validate"]["packed"]), job["validate"]["total_bytes"])
    return module, loader, validate


def _packed(described: Mapping[str, Any]) -> Rows:
    if "folder" in described:
        stream = TokenShards(Path(described["folder"]), described["name"])
        return StreamBlocks(stream, described["context"], bos_id=described["bos_id"])
    return Packed(**{name: tensor.numpy() for name, tensor in described.items()})


def execution_of(job: Mapping[str, Any], tell: Callable[[str], None] | None) -> Execution:
    """How the ranks of a job train; `tell` gets the progress lines."""
    from model.execution import Execution, Torchrun

    values = dict(job["execution"])
    torchrun, folder = Torchrun(**values.pop("torchrun")), values.pop("tensorboard")
    execution = Execution(**values, torchrun=torchrun, tell=tell)
    return execution if folder is None else replace(execution, tensorboard=Path(folder))
