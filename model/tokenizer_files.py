"""A tokenizer and its chat format as files, whatever folder they come from: `tokenizer.model` or `tokenizer.json`, and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.chat import LLAMA2_TEMPLATE, ChatFormat, Llama2Chat, TemplateChat, is_llama2
from model.checkpoint_errors import CheckpointError, read_json
from model.tokenizer import SentencePieceTokenizer, Tokenizer
from model.tokenizer_json import JsonTokenizer, from_sentencepiece

PIECES, JSON, SETTINGS, TEMPLATE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def tokenizer_files(folder: Path) -> tuple[dict[str, bytes], list[Path]]:
    """The files of a folder's tokenizer by name, and where they were read.

    `tokenizer.model` alone where it holds the whole vocabulary and the chat format is Llama 2's; else `tokenizer.json`. The settings are
    brought to one form (`tokenizer_settings`). Raises CheckpointError where there is no tokenizer or one that cannot be read.
    """
    settings, read = _settings(folder)
    pieces, imported = folder / PIECES, folder / JSON
    if not pieces.is_file() and not imported.is_file():
        raise CheckpointError(folder, None, expected=f"{PIECES} or {JSON}", found="neither")
    llama2 = not settings.get("chat_template") or is_llama2(settings["chat_template"])
    if pieces.is_file() and (_is_sentencepiece(pieces) or not imported.is_file()):
        try:
            tokenizer = SentencePieceTokenizer(pieces)
        except ValueError as error:
            raise CheckpointError(pieces, None, expected="Llama's SentencePiece model", found=str(error)) from None
        if not imported.is_file() or _size(imported) == tokenizer.vocab_size:
            if llama2:
                return with_settings({PIECES: pieces.read_bytes()}, settings), [pieces, *read]
            if not imported.is_file():
                return with_settings({JSON: from_sentencepiece(tokenizer)}, {**_SENTENCEPIECE, **settings}), [pieces, *read]
    return with_settings({JSON: imported.read_bytes()}, settings), [imported, *read]


def _is_sentencepiece(path: Path) -> bool:
    """Whether a `tokenizer.model` is SentencePiece's; Llama 3's file of that name is a text of ranks."""
    try:
        SentencePieceTokenizer(path)
    except ValueError as error:
        return "no SentencePiece" not in str(error)
    return True


def _size(path: Path) -> int:
    """The number of ids of a tokenizer.json."""
    values = read_json(path)
    ids = [*values.get("model", {}).get("vocab", {}).values(), *(token["id"] for token in values.get("added_tokens", ()))]
    return max(ids, default=-1) + 1


def _settings(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The special tokens and the chat template of a folder, and the files that say so."""
    found: dict[str, Any] = {}
    read = []
    for name in ("special_tokens_map.json", SETTINGS):
        if (folder / name).is_file():
            found |= read_json(folder / name)
            read.append(folder / name)
    settings: dict[str, Any] = {}
    for name in TOKENS:
        token = found.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise CheckpointError(folder / SETTINGS, name, expected="a text", found=repr(token))
            settings[name] = token
    template = found.get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    if (folder / TEMPLATE).is_file():
        template = (folder / TEMPLATE).read_text(encoding="utf-8")
        read.append(folder / TEMPLATE)
    if template is not None:
        settings["chat_template"] = template
    return settings, read


def with_settings(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> dict[str, bytes]:
    """The files with `settings` as their tokenizer_config.json."""
    return {**files, SETTINGS: (json.dumps(dict(settings), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()}


def tokenizer_settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    """`bos_token`, `eos_token`, `unk_token`, `pad_token` as far as known, and `chat_template`: Llama 2's where none is stated."""
    stated = json.loads(files[SETTINGS]) if SETTINGS in files else {}
    settings = {**(_SENTENCEPIECE if PIECES in files else {}), **stated}
    if "chat_template" not in settings:
        settings["chat_template"] = LLAMA2_TEMPLATE
        settings.setdefault("bos_token", settings.get("eos_token"))  # as `Tokenizer.bos_id`
    return settings


def open_tokenizer(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The tokenizer of these files; `where` names them in errors (ValueError)."""
    if PIECES in files:
        return SentencePieceTokenizer(f"{where}/{PIECES}", files[PIECES])
    return JsonTokenizer(files[JSON], tokenizer_settings(files), where)


def open_chat(files: Mapping[str, bytes], where: str) -> ChatFormat:
    """The tokenizer with its chat format: the stated template, or Llama 2's."""
    tokenizer = open_tokenizer(files, where)
    settings = tokenizer_settings(files)
    if isinstance(tokenizer, JsonTokenizer) and not is_llama2(settings["chat_template"]):
        return TemplateChat(tokenizer, settings["chat_template"], settings)
    return Llama2Chat(tokenizer)


def read_tokenizer(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files in a folder that this project wrote. Raises ValueError where there is none."""
    files = {name: (folder / name).read_bytes() for name in (PIECES, JSON, SETTINGS) if (folder / name).is_file()}
    if PIECES not in files and JSON not in files:
        raise ValueError(f"there is no tokenizer in {folder}; expected {PIECES} or {JSON}")
    return files


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder that this project wrote."""
    return open_tokenizer(read_tokenizer(folder), str(folder))


def load_chat(folder: Path) -> ChatFormat:
    """The tokenizer and chat format in a folder that this project wrote."""
    return open_chat(read_tokenizer(folder), str(folder))
