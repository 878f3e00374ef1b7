"""Which data made this: the tree of everything behind an artifact, down to raw files and the git commit."""

from collections.abc import Iterator
from typing import Any

from resources.environment import active_profile
from resources.errors import TampuError
from resources.manifests import Artifact
from resources.store import ArtifactStore
from resources.verification import Finding, verify

__all__ = ["Finding", "Node", "render", "tree", "verify"]

Node = dict[str, Any]


def tree(store: ArtifactStore, asset: str, partition: str | None = None, profile: str | None = None) -> Node:
    """The tree of what an artifact was made from.

    Without `partition`, an asset that has them is taken at its latest. Each node has `relation` (`self`, `parent`,
    `batch`, `previous`, `history`, `cited`), `asset`, `partition`, `key`, `data_version`, `code_version`, `git_commit`,
    `git_dirty`, `created_at`, `files` (raw files as {name, sha256}) and `children`. An artifact that appears again has
    `repeated` true and no children; one that the store lacks has a `problem`.
    Raises TampuError when the asset has not been made under the profile.
    """
    profile = active_profile() if profile is None else profile
    if partition is None and not store.has_current(asset, None, profile) and (made := store.partitions(asset, profile)):
        partition = made[-1]
    return _node(store, "self", store.current(asset, partition, profile), set())


def _node(store: ArtifactStore, relation: str, artifact: Artifact, seen: set[tuple[str, str]]) -> Node:
    """One artifact and, the first time, what is behind it."""
    manifest = artifact.manifest
    node: Node = {
        "relation": relation,
        **artifact.reference(),
        "code_version": manifest["code_version"],
        "git_commit": manifest["git"]["commit"],
        "git_dirty": manifest["git"]["dirty"],
        "created_at": manifest["created_at"],
        "applied": artifact.applied,
        "files": [{"name": file["name"], "sha256": file["sha256"]} for file in manifest["raw_files"]],
        "children": [],
    }
    if (artifact.asset, artifact.key) in seen:
        return node | {"repeated": True}
    seen.add((artifact.asset, artifact.key))
    for one in manifest["inputs"]:
        node["children"].append(_child(store, one["relation"], one, seen))
    for one in manifest["cited"]:
        node["children"].append(_child(store, "cited", _located(store, one), seen))
    return node


def _child(store: ArtifactStore, relation: str, reference: dict[str, Any], seen: set[tuple[str, str]]) -> Node:
    """The node of a reference; one that cannot be opened says so and ends there."""
    pinned = {name: reference[name] for name in ("asset", "partition", "key", "data_version")}
    if pinned["key"] is None:
        return {"relation": relation, **pinned, "files": [], "children": [], "problem": "not in this store"}
    try:
        artifact = store.open(pinned["asset"], pinned["key"], pinned["partition"])
    except TampuError as error:
        return {"relation": relation, **pinned, "files": [], "children": [], "problem": str(error)}
    return _node(store, relation, artifact, seen)


def _located(store: ArtifactStore, cited: dict[str, Any]) -> dict[str, Any]:
    """A cited artifact with its key, where the store has its data version."""
    if cited["key"] is not None:
        return cited
    for key in store.keys_of(cited["asset"]):
        try:
            artifact = store.open(cited["asset"], key, cited["partition"])
        except TampuError:
            continue
        if artifact.data_version == cited["data_version"]:
            return cited | {"key": key, "partition": cited["partition"] or artifact.manifest["partition"]}
    return cited


def render(root: Node) -> str:
    """The tree for a person: an artifact a line, raw files below the one that read them."""
    return "\n".join([_line(root), *_branches(root, "")])


def _branches(node: Node, indent: str) -> Iterator[str]:
    """The lines below a node."""
    if node.get("repeated"):
        return
    below: list[Node] = [*({"file": file} for file in node["files"]), *node["children"]]
    for position, child in enumerate(below):
        last = position == len(below) - 1
        yield indent + ("└─ " if last else "├─ ") + _line(child)
        if "file" not in child:
            yield from _branches(child, indent + ("   " if last else "│  "))


def _line(node: Node) -> str:
    """One node as a line."""
    if "file" in node:
        return f"file {node['file']['name']}  sha256 {node['file']['sha256'][:12]}"
    partition = f"[{node['partition']}]" if node["partition"] else ""
    relation = "" if node["relation"] in ("self", "parent", "batch") else f"{node['relation']} "
    line = f"{relation}{node['asset']}{partition}  data {node['data_version'][:12]}"
    if "problem" in node:
        return f"{line}  ({node['problem']})"
    if node.get("repeated"):
        return f"{line}  (see above)"
    commit = f"{node['git_commit'][:10]}{' with changes' if node['git_dirty'] else ''}" if node["git_commit"] else "none"
    return f"{line}  key {node['key']}  code {node['code_version'][:12]}  commit {commit}"
