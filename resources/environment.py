"""What a run happens in: where things are kept, the profile, and the facts recorded (never hashed) in manifests."""

import functools
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from model.emissions import emissions
from resources.errors import TampuError

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_PROFILE = "tiny"
# Profiles and partitions become parts of file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_RULE = "a name begins with a letter or a digit and goes on with those, '.', '-' and '_'"
PACKAGES = (
    "dagster",
    "duckdb",
    "lightning",
    "matplotlib",
    "numpy",
    "polars",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
)

# Our choice: a laptop or server core under load draws about 15 W (package power over cores of current parts).
CPU_CORE_WATTS = 15.0
# Board power of the accelerators people rent (vendors' data sheets); the first name found in the device's name counts.
GPU_WATTS = {
    "GB200": 1200.0,
    "B200": 1000.0,
    "H200": 700.0,
    "H100 PCIe": 350.0,
    "H100": 700.0,
    "A100": 400.0,
    "L40S": 350.0,
    "L4": 72.0,
    "A10": 150.0,
    "V100": 300.0,
    "T4": 70.0,
    "RTX 5090": 575.0,
    "RTX 4090": 450.0,
    "RTX 3090": 350.0,
}
UNKNOWN_GPU_WATTS = 400.0  # Our choice: as an A100; the manifest says that it was assumed.


def tampu_home() -> Path:
    """Absolute path of the folder that holds every artifact: `TAMPU_HOME`, or `.tampu` in the repository."""
    named = os.environ.get("TAMPU_HOME", "")
    return Path(named).expanduser().absolute() if named else REPOSITORY / ".tampu"


def active_profile() -> str:
    """Name of the profile that everything runs under: `TAMPU_PROFILE` (for a TOML file its name without the ending), or `tiny`."""
    named = os.environ.get("TAMPU_PROFILE", "") or DEFAULT_PROFILE
    profile = Path(named).stem if named.endswith(".toml") else named
    if not NAME.fullmatch(profile):
        raise TampuError(f"TAMPU_PROFILE={profile!r} is no profile, such as {DEFAULT_PROFILE!r} is: {NAME_RULE}")
    return profile


def forced(tags: dict[str, str]) -> bool:
    """Whether complete artifacts are recomputed: `TAMPU_FORCE=1` or the run's tag `tampu/force=true`."""
    return os.environ.get("TAMPU_FORCE", "") in ("1", "true") or tags.get("tampu/force", "") == "true"


@functools.cache
def git_state(root: Path = REPOSITORY) -> dict[str, Any]:
    """`{"commit": 40 hex digits, "dirty": bool}` of the repository; both None outside a git checkout."""
    nothing: dict[str, Any] = {"commit": None, "dirty": None}
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if top is None or Path(top).resolve() != root.resolve():
            return nothing
        commit = _git(root, "rev-parse", "--verify", "HEAD")
        status = _git(root, "status", "--porcelain")
    except (OSError, subprocess.TimeoutExpired):
        return nothing
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in `root`, or None when it fails."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that compute anything."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (bytes), accelerators and thread settings of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    torch = sys.modules.get("torch")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "gpus": gpu_names(),
        "threads": None if torch is None else torch.get_num_threads(),
    }


@functools.cache
def _processor() -> str:
    """The processor's model name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Names of the GPUs that torch has initialised in this process; empty when nothing here ran on one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def gpu_watts(name: str) -> tuple[float, bool]:
    """Board power in watts of a GPU by its name, and whether it had to be assumed."""
    for known, watts in GPU_WATTS.items():
        if known.lower() in name.lower():
            return watts, False
    return UNKNOWN_GPU_WATTS, True


def carbon(device: str, device_hours: float, watts: float) -> dict[str, Any]:
    """Energy and emissions of `device_hours` (hours x devices) at `watts` a device: kWh (with PUE) and tCO2e."""
    used = emissions(device_hours, watts)
    return {"device": device, "device_hours": device_hours, "watts": watts, "kwh": used.kwh, "tco2e": used.tco2e}


class Meter:
    """Measures what a block of work uses, from its construction until `read`."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = _cpu_seconds()
        torch = sys.modules.get("torch")
        for index in range(len(gpu_names())):
            if torch is not None:
                torch.cuda.reset_peak_memory_stats(index)

    def read(self) -> dict[str, Any]:
        """{seconds, cpu_seconds, peak_memory_bytes, carbon: list of {device, device_hours, watts, assumed}}.

        Processor: core-hours of this process and its finished children, at `CPU_CORE_WATTS` each. GPU: the wall time of
        every device on which torch allocated memory. The peak is the process's so far.
        """
        seconds = time.perf_counter() - self._wall
        cpu = _cpu_seconds() - self._cpu
        devices: list[dict[str, Any]] = [{"device": "cpu core", "device_hours": cpu / 3600, "watts": CPU_CORE_WATTS, "assumed": True}]
        torch = sys.modules.get("torch")
        for index, name in enumerate(gpu_names()):
            if torch is not None and torch.cuda.max_memory_allocated(index) > 0:
                watts, assumed = gpu_watts(name)
                devices.append({"device": name, "device_hours": seconds / 3600, "watts": watts, "assumed": assumed})
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_bytes": peak, "carbon": devices}


def _cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
