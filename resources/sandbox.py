"""Running programs that a model wrote: another process, no network, little memory and time, an empty folder, and nothing of ours.

Linux only. The kernel refuses sockets (seccomp), so no package of the system is needed. What the process can still do is read files that
everybody may read: run code tasks on a machine that holds no secrets.
"""

import contextlib
import ctypes
import os
import platform
import resource
import secrets
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from resources.errors import TampuError

SECONDS = 5
MEMORY_BYTES = 512 * 1024**2
FILE_BYTES = 1024**2
PROCESSES = 64
# (audit architecture, socket, socketpair, io_uring_setup) of the kernels that this was made for.
_ARCHITECTURES = {"x86_64": (0xC000003E, 41, 53, 425), "aarch64": (0xC00000B7, 198, 199, 425)}
_ERRNO, _ALLOW, _KILL = 0x00050000 | 13, 0x7FFF0000, 0x80000000


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end, and if not, why: `failed`, `timeout` or `memory`."""

    passed: bool
    reason: str
    output: str


def run_python(program: str, *, seconds: int = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """Run a Python program to its end. Raises TampuError where the machine cannot keep it from the network."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        raise TampuError(f"programs that a model wrote run only on Linux on {' or '.join(_ARCHITECTURES)}, not on {sys.platform} {machine}")
    filters = _filter(*_ARCHITECTURES[machine])
    reached = f"reached the end {secrets.token_hex(8)}"

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if os.getuid() != 0:  # the limit counts all processes of a user, and root has none
            resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
        _install(filters)

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-c", "import sys; exec(compile(sys.stdin.read(), 'program', 'exec'), {'__name__': '__main__'})"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder},
            preexec_fn=confine,
            start_new_session=True,
        )
        try:
            raw, _ = process.communicate(f"{program}\nprint({reached!r})\n".encode(), timeout=seconds + 1)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timeout", "")
        finally:
            _end(process)
    output = raw.decode(errors="replace")
    if process.returncode == 0 and output.rstrip().endswith(reached):
        return Outcome(True, "passed", output[: output.rindex(reached)])
    killed = process.returncode in (-24, -9)
    reason = "timeout" if killed else "memory" if "MemoryError" in output else "failed"
    return Outcome(False, reason, output[-2000:])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what the program left running, by its own group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.wait()


def _filter(architecture: int, *refused: int) -> bytes:
    """A seccomp program: kill on another architecture, EACCES for the refused calls and for x32's, else allow."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    calls = len(refused)
    instructions = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, _KILL), (load, 0, 0, 0), (at_least, calls + 1, 0, 0x40000000)]
    instructions += [(equal, calls - number, 0, call) for number, call in enumerate(refused)]
    instructions += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERRNO)]
    return b"".join(struct.pack("HBBI", *one) for one in instructions)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _install(filters: bytes) -> None:
    """Set no_new_privs and the filter for this process and its children; raises OSError where the kernel does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(filters, len(filters))
    program = _Program(len(filters) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")
