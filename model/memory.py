"""The C allocator's settings for training on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Names of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let glibc reuse freed buffers instead of handing them back to the system after every operation; True where it took effect.

    A training step on a CPU allocates the same few hundred megabytes again and again. By default glibc maps and unmaps each of them,
    and the page faults cost a fifth of the step's time. Other allocators are left as they are.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)


def release_freed_memory() -> None:
    """Hand what is free back to the system after all, between two pieces of work: the next one's peak then starts from what is in use."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
