"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any


class MissingPackage(ValueError):
    """A format was asked for whose package is not installed."""


def optional(package: str, extra: str, purpose: str) -> Any:
    """The imported package. Raises MissingPackage, with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingPackage(f"{purpose} needs the package {package!r}: install it with `pip install 'tampu[{extra}]'`") from None
