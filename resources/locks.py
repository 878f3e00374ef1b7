"""One run at a time on one home.

Two runs at once would not damage anything (artifacts appear whole and are named by content), but each would compute
what the other computes and slow it down, so the second is refused with a sentence that names the first.
The lock is the operating system's (`flock`), so it ends with the process that holds it, however that process ends.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resources.disk import disk_troubles
from resources.errors import TampuError

_held: dict[Path, tuple[int, int]] = {}  # home -> (file descriptor, how many blocks of this process hold it)
_mutex = threading.Lock()


@contextmanager
def one_run(home: Path, run: str) -> Iterator[None]:
    """Hold `home` for the run named `run` until the block ends.

    Several processes of the same run share it (a multiprocess executor's steps), and one process may enter it again.
    Raises TampuError naming the other process when another run holds it.
    """
    home = home.resolve()
    with _mutex:
        descriptor, count = _held.get(home) or (_open(home, run), 0)
        _held[home] = (descriptor, count + 1)
    try:
        yield
    finally:
        with _mutex:
            descriptor, count = _held.pop(home)
            if count > 1:
                _held[home] = (descriptor, count - 1)
            else:
                os.close(descriptor)


def _open(home: Path, run: str) -> int:
    """The descriptor of the lock file, with the lock taken."""
    with disk_troubles(home):
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home / "run.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(descriptor, home, run)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _acquire(descriptor: int, home: Path, run: str) -> None:
    """Take the lock, or share it with the same run; the guard makes looking and taking one step."""
    guard = os.open(home / "run.lock.guard", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(descriptor)
            if holder.get("run") != run:
                raise TampuError(
                    f"another run works on TAMPU_HOME={home} (pid {holder.get('pid', 'unknown')}, "
                    f"since {holder.get('since', 'unknown')}): wait until it ends, or stop it, then run again"
                ) from None
        else:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            content = json.dumps({"pid": os.getpid(), "run": run, "since": since}).encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(guard)


def _read(descriptor: int) -> dict[str, Any]:
    """What the holder wrote about itself; empty when it cannot be read."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
