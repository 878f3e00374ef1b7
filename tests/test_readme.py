"""What README and docs say can be done, can be done: commands, options, queries, links, examples, and the graph as it is drawn."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

import definitions  # noqa: F401  declares every asset
from assets.preferences.reading import read_comparisons
from assets.preferences.schema import Comparison
from cli import main
from jobs.launch import config_keys, parse_overrides
from jobs.stages import names_of
from resources.profiles import load_profile
from resources.prompts.instructions import TASKS
from resources.recipe import DECLARED
from resources.sources import Source
from resources.store import ArtifactStore
from resources.tables import TABLES
from resources.warehouse import query

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(tool: str) -> list[list[str]]:
    """Every command line of a tool in the pages' shell blocks, as words."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == tool]


def test_every_tampu_command_is_understood() -> None:
    found = commands("tampu")
    assert len(found) > 8
    for words in found:
        command = main.commands[words[1]]
        with click.Context(command, info_name=words[1]) as context:
            command.parse_args(context, words[2:])


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    found = {words[1] for words in commands("make")}
    assert {"demo", "test", "ui", "bench", "lint"} <= found <= targets


def test_every_query_can_be_asked(tmp_path: Path) -> None:
    asked = [words[2] for words in commands("tampu") if words[1] == "query"]
    assert len(asked) >= 3
    for sql in asked:
        assert query(ArtifactStore(home=str(tmp_path)), sql).is_empty()


def test_every_setting_and_selection_names_what_there_is() -> None:
    for words in commands("tampu"):
        if words[1] == "run":
            settings = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
            assert bool(parse_overrides(settings, config_keys())) == bool(settings)
            chosen = [words[index + 1] for index, word in enumerate(words) if word == "--select"]
            round_name = words[words.index("--round") + 1] if "--round" in words else None
            assert names_of(chosen, round_name)


def test_the_sources_of_the_examples_are_sources() -> None:
    settings = [words[index + 1] for words in commands("tampu") for index, word in enumerate(words) if word == "--set"]
    lists = [json.loads(text.partition("=")[2]) for text in settings if text.startswith("corpus/documents.sources")]
    lists += [yaml.safe_load(block)["ops"]["corpus__documents"]["config"]["sources"] for block in blocks(ROOT / "docs/data.md", "yaml")]
    assert len(lists) >= 3
    for declared in lists:
        assert "chitchat" in [Source.from_dict(source).name for source in declared]


def test_the_profile_of_the_example_loads(tmp_path: Path) -> None:
    for number, block in enumerate(blocks(ROOT / "README.md", "toml")):
        path = tmp_path / f"example_{number}.toml"
        path.write_text(block)
        assert load_profile(str(path)).name == path.stem


def test_the_example_of_a_comparison_is_accepted_and_its_table_lists_every_key() -> None:
    (block,) = blocks(ROOT / "docs/annotator.md", "json")
    found = read_comparisons(json.dumps(json.loads(block)).encode())
    assert (found.accepted.height, found.quarantined.height) == (1, 0)
    text = (ROOT / "docs/annotator.md").read_text(encoding="utf-8")
    assert all(f"| `{key}` |" in text for key in Comparison.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_drawn_graph_holds_every_asset_of_the_recipe_and_only_true_edges() -> None:
    (drawing,) = blocks(ROOT / "docs/architecture.md", "mermaid")
    names = dict(re.findall(r"(\w+__\w+)\[([\w/]+)\]", drawing))
    assert all(name.replace("__", "/") == label for name, label in names.items())
    assert set(names.values()) == {name for name in DECLARED if not name.startswith("ablations/")}
    edges = re.findall(r"(\w+__\w+)(?:\[[^\]]*\])? (-->|-\.->) (\w+__\w+)", drawing)
    assert len(edges) == len(re.findall(r"-->|-\.->", drawing))
    for parent, arrow, child in edges:
        declared = DECLARED[names[child]]
        known = declared.parents if arrow == "-->" else (*declared.previous, *declared.history)
        assert names[parent] in known, (parent, arrow, child)


def test_every_table_of_the_warehouse_is_described() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert all(f"| `{table}` |" in text for table in (*TABLES, "current"))


def test_every_instruction_family_is_described() -> None:
    section = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("**Instructions**")[2].partition("**Adversarial prompts**")[0]
    described = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert described == [task.name for task in TASKS]
