"""`torchrun` that ends with the process that started it and writes down which ranks ended badly.

    python -m model.torchrun <torchrun's arguments> -m <worker> <folder of a job>

It runs torch's own elastic agent (`torch.distributed.run`): when a rank ends badly, the agent ends all others, with SIGTERM and
30 seconds later with SIGKILL, and does not try again.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Let the system send this process a signal when its parent ends, however that ends. Linux only; elsewhere it does nothing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), number)


def main(arguments: list[str]) -> int:
    """Exit code: 0, 1 when a rank ended badly, 128 and the signal's number when it was told to end."""
    end_with_parent(signal.SIGTERM)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(arguments)
    except ChildFailedError as error:
        failures = [
            {
                "rank": rank,
                "exit_code": failure.exitcode,
                "time": failure.timestamp,
                "error": failure.message["message"] if isinstance(failure.message, dict) else None,
            }
            for rank, failure in error.failures.items()
        ]
        Path(arguments[-1], "failures.json").write_text(json.dumps(failures))
        return 1
    except SignalException as told:
        return 128 + int(told.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
