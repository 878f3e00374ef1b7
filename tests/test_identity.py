"""Keys, data versions, and which source code counts."""

import hashlib
from pathlib import Path

import pytest
from homes import write_module

from resources import identity
from resources.errors import TampuError

FACTS = {
    "asset": "reward/helpfulness",
    "code": "c0de",
    "config": {"learning_rate": 0.001, "seed": 1},
    "inputs": [("preferences/dataset", "v1", "aa"), ("sft/model", None, "bb")],
    "files": {"batch.jsonl": "cc"},
    "applied": True,
}


def key(**changes: object) -> str:
    return identity.key_of(**{**FACTS, **changes})  # type: ignore[arg-type]


def test_a_key_is_twenty_digits_of_the_hash_of_the_facts_as_canonical_json() -> None:
    text = (
        '{"applied":true,"asset":"reward/helpfulness","code":"c0de","config":{"learning_rate":0.001,"seed":1},'
        '"files":{"batch.jsonl":"cc"},"format":1,"inputs":[["preferences/dataset","v1","aa"],["sft/model",null,"bb"]]}'
    )
    assert key() == hashlib.sha256(text.encode()).hexdigest()[:20] == "b5e3a317a78df06e7e1a"


def test_a_key_does_not_depend_on_the_order_of_inputs_or_of_config_fields() -> None:
    assert key(inputs=list(reversed(FACTS["inputs"]))) == key()  # type: ignore[call-overload]
    assert key(config={"seed": 1, "learning_rate": 0.001}) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"asset": "reward/safety"},
        {"code": "c0df"},
        {"config": {"learning_rate": 0.002, "seed": 1}},
        {"inputs": [("preferences/dataset", "v2", "aa"), ("sft/model", None, "bb")]},
        {"inputs": [("preferences/dataset", "v1", "ab"), ("sft/model", None, "bb")]},
        {"files": {"batch.jsonl": "cd"}},
        {"files": {"other.jsonl": "cc"}},
        {"applied": False},
    ],
)
def test_a_key_changes_with_everything_that_decides_content(change: dict[str, object]) -> None:
    assert key(**change) != key()


def test_a_key_changes_with_the_version_of_the_serialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(identity, "FORMAT", identity.FORMAT + 1)
    assert key() != before


def test_a_config_value_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key(config={"learning_rate": float("nan")})


def test_a_data_version_depends_on_names_and_bytes_of_all_files_and_on_nothing_else() -> None:
    version = identity.data_version_of({"a": "1", "b": "2"})
    assert version == identity.data_version_of({"b": "2", "a": "1"})
    assert version != identity.data_version_of({"a": "2", "b": "1"})
    assert version != identity.data_version_of({"a": "1"})


def test_fields_that_decide_nothing_are_left_out_also_inside_lists() -> None:
    sources = [{"name": "x", "path": "/a"}, {"name": "y", "path": "/b"}]
    config = {"sources": sources, "log_every": 5, "deep": {"a": {"b": 1}}}
    assert identity.counted(config, ("sources.path", "log_every", "deep.a.b")) == {
        "sources": [{"name": "x"}, {"name": "y"}],
        "deep": {"a": {}},
    }
    assert config["log_every"] == 5


# The closure

MODULE = '''"""What it is."""
from model import losses

SIZE = 3


def make(n: int) -> int:
    """Twice."""
    # because
    return losses.twice(n) + SIZE
'''
LOSSES = "def twice(n):\n    return 2 * n\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_module(tmp_path, "model.losses", LOSSES)
    write_module(tmp_path, "assets.reward", MODULE)
    return tmp_path


def code(root: Path, text: str | None = None, name: str = "assets.reward") -> str:
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    if text is not None:
        write_module(root, name, text)
    return identity.code_version(path, root)


@pytest.mark.parametrize(
    "changed",
    [
        MODULE.replace("# because", "# for another reason"),
        MODULE.replace('"""Twice."""', '"""Two times, with three more."""'),
        MODULE.replace('    """Twice."""\n', ""),
        MODULE.replace('"""What it is."""\n', ""),
        MODULE.replace("\n\n\n", "\n\n\n\n\n"),
        MODULE.replace("losses.twice(n) + SIZE", "(\n        losses.twice(n)\n        + SIZE\n    )"),
        MODULE.replace("from model import losses", "from model import losses  # noqa"),
    ],
)
def test_a_changed_comment_docstring_or_layout_keeps_the_code_version(root: Path, changed: str) -> None:
    before = code(root)
    assert changed != MODULE
    assert code(root, changed) == before


@pytest.mark.parametrize(
    "changed",
    [
        MODULE.replace("SIZE = 3", "SIZE = 4"),
        MODULE.replace("SIZE = 3", "SIZE = 3.0"),
        MODULE.replace("SIZE = 3", "SIZE = None"),
        MODULE.replace("SIZE = 3", "SIZE = True"),
        MODULE.replace("+ SIZE", "- SIZE"),
        MODULE.replace("n: int) -> int", "n: int, m: int = 0) -> int"),
        MODULE + "\n\nNOTE = 'text'\n",
    ],
)
def test_changed_code_changes_the_code_version(root: Path, changed: str) -> None:
    before = code(root)
    assert code(root, changed) != before


def test_code_that_is_imported_directly_or_not_counts_and_other_code_does_not(root: Path) -> None:
    write_module(root, "model.other", "X = 1\n")
    before = code(root)
    write_module(root, "model.other", "X = 2\n")
    assert code(root) == before
    write_module(root, "model.losses", "from model.other import X\n" + LOSSES)
    through = code(root)
    assert through != before
    write_module(root, "model.other", "X = 3\n")
    assert code(root) != through


@pytest.mark.parametrize(
    "line",
    [
        "import model.extra",
        "import model.extra as extra",
        "from model import extra",
        "from model.extra import X",
        "from model.extra import *",
        "def late():\n    from model.extra import X\n    return X",
        "from ..model.extra import X",
        "SPECIFICATION = {'module': 'model.extra'}",
        "SPECIFICATION = {'entry': 'model.extra:X'}",
        "try:\n    import model.extra\nexcept ImportError:\n    pass",
    ],
)
def test_every_way_to_import_a_module_is_followed(root: Path, line: str) -> None:
    write_module(root, "model.extra", "X = 1\n")
    write_module(root, "assets.reward", f"{line}\n")
    before = code(root)
    write_module(root, "model.extra", "X = 2\n")
    assert code(root) != before


def test_relative_imports_inside_a_package_and_its_init_are_followed(root: Path) -> None:
    write_module(root, "assets.deep.words", "X = 1\n")
    write_module(root, "assets.deep.stage", "from . import words\nfrom .words import X\nfrom .. import reward\n")
    names = set(identity.closure(root / "assets/deep/stage.py", root))
    assert names == {
        "assets",
        "assets.deep",
        "assets.deep.stage",
        "assets.deep.words",
        "assets.reward",
        "model",
        "model.losses",
    }
    before = code(root, name="assets.deep.stage")
    (root / "assets/deep/__init__.py").write_text("import model.losses\nY = 5\n")
    assert code(root, name="assets.deep.stage") != before


def test_modules_that_import_each_other_are_each_counted_once(root: Path) -> None:
    write_module(root, "assets.one", "import assets.two\n")
    write_module(root, "assets.two", "import assets.one\n")
    assert set(identity.closure(root / "assets/one.py", root)) == {"assets", "assets.one", "assets.two"}


def test_libraries_and_modules_outside_the_packages_are_not_followed(root: Path) -> None:
    write_module(root, "assets.reward", "import json, polars, definitions, bench.speed\n")
    (root / "definitions.py").write_text("")
    write_module(root, "bench.speed", "")
    assert set(identity.closure(root / "assets/reward.py", root)) == {"assets", "assets.reward"}


def test_an_import_for_the_type_checker_alone_is_not_followed(root: Path) -> None:
    text = "import typing\nif typing.TYPE_CHECKING:\n    import model.losses\nelse:\n    import model.extra\n"
    write_module(root, "model.extra", "")
    write_module(root, "assets.reward", text)
    assert set(identity.closure(root / "assets/reward.py", root)) == {"assets", "assets.reward", "model", "model.extra"}


def test_profile_tables_and_what_only_moves_bytes_are_excluded(root: Path) -> None:
    for name in ("profiles", "recipe", "store", "warehouse", "lineage", "environment", "errors"):
        write_module(root, f"resources.{name}", "import model.losses\n")
    write_module(root, "resources.splits", "")
    imports = "from resources import profiles, recipe, store, warehouse, lineage, environment, errors, splits\n"
    write_module(root, "assets.reward", imports)
    found = set(identity.closure(root / "assets/reward.py", root))
    assert found == {"assets", "assets.reward", "resources", "resources.splits"}


def test_every_excluded_module_exists_so_that_the_list_cannot_rot() -> None:
    paths = [identity.REPOSITORY / f"{name.replace('.', '/')}.py" for name in identity.EXCLUDED]
    assert [path for path in paths if not path.is_file()] == []


def test_a_modules_data_files_count_by_their_bytes(root: Path) -> None:
    (root / "assets/lists").mkdir()
    (root / "assets/lists/words.txt").write_text("alpaca\n")
    write_module(root, "assets.reward", 'DATA_FILES = ("lists/words.txt",)\n')
    before = code(root)
    (root / "assets/lists/words.txt").write_text("llama\n")
    assert code(root) != before


def test_a_data_file_that_is_missing_is_named(root: Path) -> None:
    write_module(root, "assets.reward", 'DATA_FILES: tuple[str, ...] = ("lists/gone.txt",)\n')
    with pytest.raises(TampuError, match=r"lists/gone\.txt.*does not exist"):
        code(root)


def test_a_docstring_that_the_module_reads_is_code(root: Path) -> None:
    text = '"""A prompt."""\nPROMPT = __doc__\n'
    before = code(root, text)
    assert code(root, text.replace("A prompt", "Another")) != before


def test_the_code_version_does_not_depend_on_where_the_repository_lies(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_module(elsewhere, "model.losses", LOSSES)
    write_module(elsewhere, "assets.reward", MODULE)
    assert code(elsewhere) == code(root)
