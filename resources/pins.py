"""An older chat model instead of the round before's, named by its key in an asset's config."""

from collections.abc import Iterator

from resources.errors import TampuError
from resources.manifests import Artifact
from resources.rounds import CHAT_MODEL, FIRST_CHAT_MODEL
from resources.store import ArtifactStore

STANDS_FOR = {CHAT_MODEL: (CHAT_MODEL, FIRST_CHAT_MODEL)}
TOKENIZER = "tokenizer/sentencepiece"


def pinned_by_key(store: ArtifactStore, asset: str, key: str, profile: str) -> Artifact:
    """The artifact of this key that may stand for `asset` (for `rlhf/chat_model` also an `sft/model`), as its partition says.

    Raises TampuError when there is none, when it failed a blocking check, or when it was made with another tokenizer than the profile's.
    """
    assets = STANDS_FOR.get(asset, (asset,))
    found = next((name for name in assets if key in store.keys_of(name)), None)
    if found is None:
        known = [f"{name} {one}" for name in assets for one in store.keys_of(name)]
        raise TampuError(f"no {' or '.join(assets)} has the key {key!r}; the keys are {', '.join(known) or 'none'}")
    artifact = store.open(found, key)
    artifact = store.open(found, key, artifact.manifest["partition"])
    if artifact.failed_check is not None:
        raise TampuError(f"{artifact.label} failed its check {artifact.failed_check!r}, so nothing can stand on it: choose another key")
    wanted = store.current(TOKENIZER, None, profile).data_version
    if set(_tokenizers(store, artifact)) - {wanted}:
        raise TampuError(
            f"{artifact.label} with the key {key} was made with another tokenizer than the profile {profile!r} has: choose another key"
        )
    return artifact


def _tokenizers(store: ArtifactStore, artifact: Artifact) -> Iterator[str]:
    """Data versions of the tokenizers behind an artifact."""
    waiting, seen = [artifact], set()
    while waiting:
        for one in waiting.pop().manifest["inputs"]:
            if one["asset"] == TOKENIZER:
                yield str(one["data_version"])
            elif one["key"] not in seen:
                seen.add(one["key"])
                waiting.append(store.open(one["asset"], one["key"], one["partition"]))
