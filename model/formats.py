"""Which checkpoint format lies at a path."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint import Checkpoint
from model.checkpoint_errors import CheckpointError
from model.gguf_file import read_gguf
from model.huggingface import read_huggingface
from model.meta import read_meta


def read_checkpoint(path: Path, *, context: int | None = None) -> Checkpoint:
    """The model at `path`: a GGUF file, a folder of Meta's (`params.json`) or of Hugging Face's (`config.json`).

    `context` (tokens) is for Meta's format, which does not say how long a context the model was trained on; others refuse it. Raises
    CheckpointError, or MissingPackage where the format needs a package that is not installed.
    """
    path = Path(path)
    if path.is_dir() and (path / "params.json").is_file():
        return read_meta(path) if context is None else read_meta(path, context=context)
    if context is not None:
        raise CheckpointError(
            path, None, expected="a folder in Meta's format for a context", found="another format, which says its context itself"
        )
    if path.is_dir() and (path / "config.json").is_file():
        return read_huggingface(path)
    if path.is_file() and path.open("rb").read(4) == b"GGUF":
        return read_gguf(path)
    if not path.exists():
        raise CheckpointError(path, None, expected="a checkpoint", found="no such file or folder")
    expected = "a folder with config.json (Hugging Face) or params.json (Meta), or a GGUF file"
    found = "a folder without either" if path.is_dir() else "a file of another kind"
    raise CheckpointError(path, None, expected=expected, found=found)
