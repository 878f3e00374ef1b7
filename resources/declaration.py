"""What an asset's decorator says, and which sayings contradict themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import dagster as dg

from resources.errors import TampuError
from resources.rounds import HISTORY, PREVIOUS
from resources.run import Check, Request

Partitions = Literal["round", "batch"] | None
Files = Callable[[Request], Mapping[str, Path]]
Body = Callable[..., None]


@dataclass(frozen=True)
class Declaration:
    """What an asset's decorator says."""

    asset: str
    parents: tuple[str, ...]
    partitions: Partitions
    previous: tuple[str, ...]
    history: tuple[str, ...]
    pins: Mapping[str, str]
    starts_at_round: bool
    files: Files | None
    checks: Mapping[str, Check]
    config: type[dg.Config] | None
    body: Body
    code: str
    registry: Mapping[str, "Declaration"] = field(repr=False, compare=False)


# Every asset declared in this process, by name: how an asset knows whether a parent has rounds.
DECLARED: dict[str, Declaration] = {}


def validate(declared: Declaration) -> None:
    """Refuse a declaration that could not work."""
    key = declared.asset
    if declared.partitions != "round" and (declared.previous or declared.history or declared.starts_at_round):
        raise TampuError(f'{key}: previous, history and starts_at_round need partitions="round"')
    for name, given, known in (("previous", declared.previous, PREVIOUS), ("history", declared.history, HISTORY)):
        for asset in given:
            if asset not in known:
                raise TampuError(f"{key}: {name}={asset!r} is not pinned in rounds' records, which pin {', '.join(known)}")
    fields = declared.config.model_fields if declared.config else {}
    for asset, name in declared.pins.items():
        if asset not in declared.previous or name not in fields:
            raise TampuError(f"{key}: pins={{{asset!r}: {name!r}}} needs {asset!r} among its previous and {name!r} in its config")
    if declared.starts_at_round and "from_round" not in fields:
        raise TampuError(f"{key}: starts_at_round needs an int field from_round in its config")
    for name in getattr(declared.config, "NOT_IDENTITY", ()):
        if name.split(".")[0] not in fields:
            raise TampuError(f"{key}: NOT_IDENTITY names {name!r}, which its config does not have")
