"""How a checkpoint that cannot be read is told, and the JSON files of one read so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be read. The message names the file, the key, what was expected and what was found."""

    def __init__(self, file: Path | str, key: str | None, *, expected: str, found: str) -> None:
        place = f"{file}: {key}" if key else str(file)
        super().__init__(f"{place}: expected {expected}, found {found}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError for a missing file and for anything else in it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(path, None, expected="a JSON file", found="no such file") from None
    except ValueError as error:
        raise CheckpointError(path, None, expected="JSON", found=f"text that is not ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(path, None, expected="a JSON object", found=type(value).__name__)
    return value


def number(values: Mapping[str, Any], key: str, path: Path, kind: type[int] | type[float], default: Any = None) -> Any:
    """`values[key]` as an int or a float; without a default it must be there. Raises CheckpointError."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise CheckpointError(path, key, expected="a number" if kind is float else "a whole number", found=repr(value))
    return kind(value)
