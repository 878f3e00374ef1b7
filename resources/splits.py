"""The one way anything is divided into train, validation and test: by a hash of what it is."""

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]


def fraction_of(identity: str, salt: str) -> float:
    """A number in [0, 1) that depends on `salt` and `identity` alone, uniform over identities."""
    digest = hashlib.sha256(f"{salt}\x1f{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(identity: str, *, validation: float, test: float, salt: str = "tampu") -> Split:
    """The part that `identity` (a conversation, a prompt, a topic) belongs to, in every asset alike.

    `validation` and `test` are shares in [0, 1] whose sum is at most 1; the rest is train.
    """
    if not (0 <= validation <= 1 and 0 <= test <= 1 and validation + test <= 1):
        raise ValueError(f"validation={validation} and test={test} are shares: each in [0, 1], together at most 1")
    position = fraction_of(identity, salt)
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
