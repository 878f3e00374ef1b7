"""One rank of a training that `model.launching` started: `python -m model.worker <folder of a job>`, under torchrun.

Nothing but torch, Lightning, NumPy and safetensors is needed to run it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch.distributed.elastic.multiprocessing.errors import record

from model import ranks
from model.launching import built, execution_of
from model.resume import Resume
from model.torchrun import end_with_parent
from model.training import fit

GRACE = 2.0  # seconds in which torchrun, which looks ten times a second, sees that another rank ended first


def main(folder: Path, *, tell: Callable[[str], None] | None = None, report: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Train as a rank and, as the first one, write what comes of it into `folder`. `tell` gets lines, `report` facts about the ranks.

    An error goes into torchrun's error file and ends the process at once: the threads of a collective would keep it for as long as they
    wait for the other ranks.
    """
    end_with_parent(signal.SIGKILL)
    try:
        record(_rank)(folder, tell or _stderr, report or _print)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _rank(folder: Path, tell: Callable[[str], None], report: Callable[[dict[str, Any]], None]) -> None:
    try:
        _train(folder, tell, report)
    except Exception as error:
        if _is_about_others(error):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(GRACE)  # let the rank be found that is the cause
        raise
    finally:
        if sys.exc_info()[0] is None or isinstance(sys.exc_info()[1], SystemExit):
            dist.destroy_process_group()


def _is_about_others(error: Exception) -> bool:
    """Whether a collective failed, as it does on all ranks once one is gone."""
    said = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(name in said for name in ("gloo", "NCCL")))


def _train(folder: Path, tell: Callable[[str], None], report: Callable[[dict[str, Any]], None]) -> None:
    job = torch.load(folder / "job.pt", weights_only=True, mmap=True)
    execution = execution_of(job, tell)
    assert execution.torchrun is not None
    timeout = timedelta(seconds=execution.torchrun.timeout)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this node, whatever its host name means
        dist.init_process_group("gloo", timeout=timeout)
    module, loader, validate = built(job)
    checkpoints: list[int] = []
    began = time.perf_counter()

    def keep(step: int) -> None:
        checkpoints.append(step)
        write_weights(module, folder / f"checkpoint-{step}")

    resume = job["resume"] and Resume(**{**job["resume"], "folder": Path(job["resume"]["folder"]), "say": tell})
    result = fit(module, loader, validate=validate, on_checkpoint=keep, resume=resume, execution=execution, **job["fit"])
    write_weights(module, folder / "final")
    facts = _facts(time.perf_counter() - began, execution.torchrun.strategy)
    if ranks.first():
        report(facts)
        temporary = folder / ".result.tmp"
        temporary.write_text(json.dumps({**vars(result), "checkpoints": checkpoints}))
        temporary.rename(folder / "result.json")
    ranks.wait_for_all()


def write_weights(module: LightningModule, folder: Path) -> None:
    """The module's weights as one safetensors file in `folder`. Sharded ones are written by each rank, below it, and then put together."""
    if ranks.is_sharded(module):
        import torch.distributed.checkpoint as dcp

        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True)
        dcp.save(module.state_dict(), storage_writer=writer)
    elif ranks.first():
        folder.mkdir()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, folder / "model.safetensors")


def _facts(seconds: float, strategy: str) -> dict[str, Any]:
    """How many ranks there were, on what, for how long (`seconds`), and the peak memory of each (bytes; of its device, or of the process)."""
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    own = [float(peak) if rank == ranks.number() else 0.0 for rank in range(ranks.count())]
    return {
        "processes": ranks.count(),
        "strategy": strategy,
        "backend": "nccl" if on_gpu else "gloo",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "seconds": seconds,
        "peak_memory_bytes": [int(peak) for peak in ranks.summed(own)],
    }


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(facts: Mapping[str, Any]) -> None:
    _stderr(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
