"""Every test runs in the micro profile: sizes are smaller, the method is the same."""

import os

os.environ["TAMPU_PROFILE"] = "micro"
os.environ.pop("TAMPU_HOME", None)

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import settings

from resources.store import ArtifactStore

# How long an example takes says nothing about behaviour, and other work may share the machine.
settings.register_profile("tampu", deadline=None)
settings.load_profile("tampu")


@dataclass
class Demo:
    """A home in which the demo has run, its instance, and what it said."""

    store: ArtifactStore
    instance: dg.DagsterInstance
    lines: list[str]


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The whole recipe with two rounds, run once for all tests that look at it. They must not change it (`demo_copy` may be)."""
    from jobs.stages import demonstrate

    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    home = tmp_path_factory.mktemp("demo") / "home"
    store = ArtifactStore(home=str(home))
    lines: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        demonstrate(store, instance, lines.append)
        yield Demo(store, instance, lines)


@pytest.fixture
def demo_copy(finished_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArtifactStore]:
    """A copy of the finished home, to change at will; also what TAMPU_HOME names."""
    home = tmp_path / "home"
    shutil.copytree(finished_demo.store.root, home)
    monkeypatch.setenv("TAMPU_HOME", str(home))
    yield ArtifactStore(home=str(home))
