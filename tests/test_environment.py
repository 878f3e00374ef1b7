"""Facts that are recorded beside an artifact: home, profile, commit, packages, energy."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resources import environment
from resources.errors import TampuError


@pytest.mark.parametrize(
    ("gpu_hours", "watts", "tons"),
    # Llama 2 (arXiv:2307.09288), table 2: 7B, 13B, 34B, 70B; it prints truncated numbers.
    [(184_320, 400, 31.22), (368_640, 400, 62.44), (1_038_336, 350, 153.90), (1_720_320, 400, 291.42)],
)
def test_emissions_are_those_that_the_llama_2_paper_prints(gpu_hours: float, watts: float, tons: float) -> None:
    row = environment.carbon("A100", gpu_hours, watts)
    assert row["tco2e"] == pytest.approx(tons, abs=0.011)
    assert row["kwh"] == pytest.approx(gpu_hours * watts * 1.1 / 1000)


def test_a_gpu_draws_what_its_data_sheet_says_and_an_unknown_one_is_marked_as_assumed() -> None:
    assert environment.gpu_watts("NVIDIA H100 80GB HBM3") == (700.0, False)
    assert environment.gpu_watts("NVIDIA H100 PCIe") == (350.0, False)
    assert environment.gpu_watts("NVIDIA L40S") == (350.0, False)
    assert environment.gpu_watts("NVIDIA A100-SXM4-80GB") == (400.0, False)
    assert environment.gpu_watts("Someone's GPU") == (400.0, True)


def test_work_on_gpus_is_metered_for_the_devices_that_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda index: "NVIDIA H100 80GB HBM3",
        reset_peak_memory_stats=lambda index: None,
        max_memory_allocated=lambda index: [10**9, 0][index],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    used = environment.Meter().read()
    processor, gpu = used["carbon"]
    assert processor["device"] == "cpu core" and processor["device_hours"] == pytest.approx(used["cpu_seconds"] / 3600)
    assert (gpu["device"], gpu["watts"], gpu["assumed"]) == ("NVIDIA H100 80GB HBM3", 700.0, False)
    assert gpu["device_hours"] == pytest.approx(used["seconds"] / 3600)


def test_work_without_a_gpu_is_metered_by_processor_time() -> None:
    meter = environment.Meter()
    sum(range(200_000))
    used = meter.read()
    assert used["cpu_seconds"] > 0 and used["seconds"] > 0
    assert [device["device"] for device in used["carbon"]] == ["cpu core"]


def test_the_home_is_named_by_the_environment_or_lies_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAMPU_HOME", raising=False)
    assert environment.tampu_home() == Path(__file__).resolve().parents[1] / ".tampu"
    monkeypatch.setenv("TAMPU_HOME", str(tmp_path))
    assert environment.tampu_home() == tmp_path
    monkeypatch.setenv("TAMPU_HOME", "~/somewhere")
    assert environment.tampu_home() == Path.home() / "somewhere"


def test_the_profile_is_tiny_unless_named_and_a_name_that_is_no_file_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TAMPU_PROFILE", raising=False)
    assert environment.active_profile() == "tiny"
    monkeypatch.setenv("TAMPU_PROFILE", "smol")
    assert environment.active_profile() == "smol"
    monkeypatch.setenv("TAMPU_PROFILE", "a/b")
    with pytest.raises(TampuError, match=r"TAMPU_PROFILE='a/b' is no profile"):
        environment.active_profile()


def test_the_commit_and_whether_anything_changed_since_are_known(tmp_path: Path) -> None:
    assert environment.git_state(tmp_path) == {"commit": None, "dirty": None}
    root = tmp_path / "repository"
    root.mkdir()

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (root / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    environment.git_state.cache_clear()
    assert environment.git_state(root) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (root / "file").write_text("two")
    environment.git_state.cache_clear()
    assert environment.git_state(root)["dirty"] is True


def test_versions_of_what_computes_are_recorded() -> None:
    versions = environment.package_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"dagster", "polars", "duckdb", "torch"} <= set(versions)
