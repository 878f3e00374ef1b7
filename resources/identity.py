"""What an artifact is: a key from its code, config and inputs, and a data version from its bytes.

The code of an asset is the module that defines it and everything that module imports inside the repository, directly
or not, also inside functions. Each file counts as its syntax tree without docstrings, so a comment, a docstring or
another line break changes nothing.

Modules that are left out of the closure, each for one of three reasons:

- `resources.profiles`: its values reach an asset as config, and config is in the key literally. Were the tables hashed
  as code, one profile's new size would recompute every other profile.
- `resources.recipe`, `declaration`, `materialization`, `run`, `store`, `manifests`, `disk`, `rounds`, `warehouse`,
  `tables`, `lineage`, `verification`, `environment`, `locks`, `identity`, `imports`, `pins`, `errors`, `torchrun` and
  `worker` (our choice): they move, name and describe bytes and do not decide them. What they hand to an asset (parents,
  raw files, the round's pinned artifacts) is in the key as inputs. Were they hashed, a better error message would
  retrain every model. The one thing they do decide is how a frame, JSON, rows or a plot becomes bytes: that is versioned
  by `FORMAT`, which is in the key and must grow when such bytes change.
- `model.launching` and `model.worker`: they carry a training to other processes and back. What it computes there is in
  `model.training` and in the modules of each training, which count where an asset uses them. Through these two every
  training would depend on the code of all.
"""

import ast
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resources.disk import canonical_json, sha256_file, sha256_text
from resources.environment import REPOSITORY
from resources.errors import TampuError

FORMAT = 1
PACKAGES = ("assets", "resources", "model", "jobs")
EXCLUDED = frozenset(
    f"resources.{name}"
    for name in (
        "profiles",
        "recipe",
        "run",
        "declaration",
        "materialization",
        "store",
        "manifests",
        "disk",
        "rounds",
        "warehouse",
        "tables",
        "lineage",
        "verification",
        "environment",
        "locks",
        "identity",
        "imports",
        "pins",
        "errors",
        "torchrun",
        "worker",
    )
) | {"model.launching", "model.worker"}
KEY_DIGITS = 20
_MODULE_TEXT = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?::\w+)?")


def key_of(
    *,
    asset: str,
    code: str,
    config: dict[str, Any],
    inputs: Sequence[Sequence[str | None]],
    files: dict[str, str],
    applied: bool,
) -> str:
    """The first 20 hex digits of the SHA-256 over everything that decides an artifact's content.

    `config` holds literal values, `inputs` is [parent asset, partition or None, data version] of every artifact read,
    in any order, `files` maps raw files' names to their SHA-256. Paths, devices, time and the profile's name have no
    place here.
    """
    ordered = sorted([list(item) for item in inputs], key=canonical_json)
    identity = {
        "asset": asset,
        "code": code,
        "config": config,
        "inputs": ordered,
        "files": files,
        "applied": applied,
        "format": FORMAT,
    }
    return sha256_text(canonical_json(identity))[:KEY_DIGITS]


def counted(config: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """`config` without the fields that do not decide content; `a.b` is field b of a, or of each item of a list a."""
    result = {name: value for name, value in config.items() if name not in left_out}
    for name, value in result.items():
        inner = [path.partition(".")[2] for path in left_out if path.startswith(f"{name}.")]
        if inner and isinstance(value, dict):
            result[name] = counted(value, inner)
        elif inner and isinstance(value, list):
            result[name] = [counted(item, inner) if isinstance(item, dict) else item for item in value]
    return result


def data_version_of(files: dict[str, str]) -> str:
    """SHA-256 over the sorted (name, SHA-256) pairs of an artifact's files, 64 hex digits."""
    return sha256_text(canonical_json(sorted(files.items())))


def code_version(module_file: Path, root: Path = REPOSITORY) -> str:
    """SHA-256 (64 hex digits) over the import closure of `module_file` inside the repository at `root`."""
    return sha256_text(canonical_json(sorted(closure(module_file, root).items())))


def closure(module_file: Path, root: Path = REPOSITORY) -> dict[str, str]:
    """Every file that the module's behaviour depends on, as {name: digest}.

    Names are module names (dotted, relative to `root`; a module outside `root` has its file's stem) or, for a module's
    `DATA_FILES`, paths relative to `root`. Raises TampuError for a listed data file that is missing.
    """
    found: dict[str, str] = {}
    own = _module_name(module_file, root)
    pending = [(own, module_file), *((name, _file_of(name, root)) for name in _packages(own, root))]
    while pending:
        name, file = pending.pop()
        if name in found:
            continue
        status = file.stat()
        parsed = _parse(file, status.st_mtime_ns, status.st_size)
        found[name] = parsed.digest
        for listed in parsed.data_files:
            data = file.parent / listed
            if not data.is_file():
                raise TampuError(f"{file} lists {listed!r} in DATA_FILES, but {data} does not exist: add it or unlist it")
            found[f"{name}:{listed}"] = sha256_file(data)
        for imported in _imported_modules(parsed, name, file, root):
            if imported not in EXCLUDED and imported not in found:
                pending.append((imported, _file_of(imported, root)))
    return found


class _Parsed:
    """What one source file says: its digest, data files, and the imports as (level, module, names)."""

    def __init__(self, tree: ast.Module) -> None:
        self.data_files = tuple(_data_files(tree))
        self.imports = list(_imports(tree))
        if not any(isinstance(node, ast.Name | ast.Attribute) and _reads_doc(node) for node in ast.walk(tree)):
            _strip_docstrings(tree)
        self.digest = sha256_text(_shape(tree))


@functools.lru_cache(maxsize=1024)
def _parse(file: Path, modified_ns: int, size: int) -> _Parsed:
    """Parse once per process; a changed file has another modification time or size."""
    return _Parsed(ast.parse(file.read_bytes(), filename=str(file)))


def _module_name(file: Path, root: Path) -> str:
    """Dotted name of a file below `root`; its stem when it lies elsewhere."""
    if not file.is_relative_to(root):
        return file.stem
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_of(name: str, root: Path) -> Path:
    """The source file of a module that is known to exist."""
    base = root.joinpath(*name.split("."))
    package = base / "__init__.py"
    return package if package.is_file() else base.with_suffix(".py")


def _exists(name: str, root: Path) -> bool:
    """Whether `name` is a module of this repository's packages."""
    return name.split(".")[0] in PACKAGES and _file_of(name, root).is_file()


def _imported_modules(parsed: _Parsed, name: str, file: Path, root: Path) -> Iterator[str]:
    """Modules of the repository that a parsed module imports, with the packages that importing them runs."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for level, module, names in parsed.imports:
        base = module
        if level:
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - level + 1])
            base = f"{above}.{module}".strip(".") if module else above
        for candidate in [base, *(f"{base}.{imported}" for imported in names)]:
            if not _exists(candidate, root):
                continue
            yield from _packages(candidate, root)
            yield candidate


def _packages(name: str, root: Path) -> Iterator[str]:
    """The packages whose `__init__.py` runs when the module `name` is imported, the outermost first."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        if _exists(prefix := ".".join(parts[:length]), root):
            yield prefix


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Every import in a module, also a string that spells a module's name (a specification of what to launch)."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            skipped.update(id(inner) for statement in node.body for inner in ast.walk(statement))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_TEXT.fullmatch(node.value):
            module, _, attribute = node.value.partition(":")
            yield 0, module, ()
            if not attribute:
                yield 0, module.rpartition(".")[0], ()


def _is_type_checking(test: ast.expr) -> bool:
    """Whether an `if` guards imports that exist for the type checker alone."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING")


def _data_files(tree: ast.Module) -> Iterator[str]:
    """The paths in a module-level `DATA_FILES = ("a.txt", ...)`."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == "DATA_FILES" for target in targets):
            yield from ast.literal_eval(value)


def _reads_doc(node: ast.Name | ast.Attribute) -> bool:
    """Whether an expression is `__doc__`: then docstrings are data and stay."""
    return (node.id if isinstance(node, ast.Name) else node.attr) == "__doc__"


def _strip_docstrings(tree: ast.Module) -> None:
    """Remove the docstring of the module and of every class and function in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]


def _shape(node: Any) -> str:
    """A syntax tree as text without positions.

    Unlike `ast.dump` it leaves out empty fields, so that fields which a newer Python adds do not change it.
    """
    if isinstance(node, list):
        return f"[{','.join(_shape(item) for item in node)}]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node!r}"
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    # A constant None is the one None that means something.
    if isinstance(node, ast.Constant) and node.value is None:
        return "Constant(None)"
    return f"{type(node).__name__}({','.join(f'{name}={_shape(value)}' for name, value in fields)})"
