"""A throw-away home with throw-away assets, for tests of the provenance layer."""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest

from resources import recipe
from resources.declaration import Declaration
from resources.store import Artifact, ArtifactStore

REPOSITORY = Path(__file__).resolve().parent.parent


# Throw-away assets bear real names; they are kept apart from the real ones, which other tests of the process use.
DECLARED: dict[str, Declaration] = {}
artifact = functools.partial(recipe.artifact, registry=DECLARED)


class Home:
    """One home and the Dagster instance that goes with it."""

    def __init__(self, path: Path) -> None:
        self.store = ArtifactStore(home=str(path))
        self.instance = dg.DagsterInstance.ephemeral()
        self.profile = "tiny"

    def make(
        self,
        *assets: dg.AssetsDefinition,
        only: Sequence[dg.AssetsDefinition] | None = None,
        partition: str | None = None,
        config: dict[str, dict[str, Any]] | None = None,
        force: bool = False,
        check: bool = True,
    ) -> dg.ExecuteInProcessResult:
        """Materialize `only` (default: all) of `assets`; raises what a body raises unless `check` is False."""
        if partition is not None:
            chosen = list(only or assets)
            kinds = {asset.partitions_def.name for asset in chosen if asset.partitions_def}  # type: ignore[attr-defined]
            for kind in kinds:
                self.instance.add_dynamic_partitions(kind, [partition])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TAMPU_PROFILE", self.profile)
            return dg.materialize(
                list(assets),
                selection=list(only) if only is not None else None,
                partition_key=partition,
                instance=self.instance,
                resources={"store": self.store},
                run_config={"ops": {name.replace("/", "__"): {"config": one} for name, one in (config or {}).items()}},
                tags={"tampu/force": "true"} if force else None,
                raise_on_error=check,
            )

    def current(self, asset: str, partition: str | None = None) -> Artifact:
        """What is current in this home's profile."""
        return self.store.current(asset, partition, self.profile)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata values of an asset's materialization in a run."""
    events = result.asset_materializations_for_node(asset.replace("/", "__"))
    return {name: value.value for name, value in events[0].metadata.items()}


def reused(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Asset name -> whether the run reused it."""
    found = {}
    for event in result.get_asset_materialization_events():
        key = event.asset_key
        assert key is not None
        value = event.materialization.metadata["reused"].value
        assert isinstance(value, bool)
        found["/".join(key.path)] = value
    return found


def write_module(root: Path, name: str, text: str) -> Path:
    """Write `text` as module `name` (dotted) of a repository at `root`, with its packages' `__init__.py`."""
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent
    while folder != root:
        (folder / "__init__.py").touch()
        folder = folder.parent
    path.write_text(text)
    return path


def load_module(root: Path, name: str, text: str) -> ModuleType:
    """Write a module and import it under a name of its own."""
    path = write_module(root, name, text)
    spec = importlib.util.spec_from_file_location(f"throwaway_{name.replace('.', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Bytecode is cached by whole seconds and size, and tests rewrite a module within one second.
    sys.modules[spec.name] = module
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def start(script: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A second Python process running `script` with this repository importable, its pipes open."""
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), **environment},
    )
