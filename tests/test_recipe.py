"""The `@artifact` decorator: what is recomputed and what is reused, and what Dagster is told."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import polars as pl
import pytest
from homes import Home, artifact, load_module, metadata, reused
from matplotlib.figure import Figure

from resources.errors import TampuError
from resources.recipe import Check, Request, Run

CALLS: list[str] = []


class Training(dg.Config):
    """A config with one field that decides nothing."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every",)

    learning_rate: float = 0.1
    seed: int = 1
    log_every: int = 10


@artifact("corpus/filtered", kinds={"polars"}, owners=["team:data"], checks=[Check("not_empty", True, "has documents")])
def corpus(run: Run) -> None:
    """All documents.

    Second paragraph.
    """
    CALLS.append(run.asset)
    run.write_frame("documents.parquet", pl.DataFrame({"text": ["a", "b"]}))
    run.check("not_empty", passed=True, description="two documents", documents=2)


@artifact("sft/model", parents=["corpus/filtered"], checks=[Check("converged")])
def sft(run: Run, config: Training) -> None:
    """A model."""
    CALLS.append(run.asset)
    documents = run.parent("corpus/filtered").frame("documents.parquet")
    run.write_json("model.json", {"n": documents.height, "learning_rate": config.learning_rate})
    run.rows("training_metrics", [{"step": 1, "tokens": 8, "metric": "train_loss", "value": 2.5}])
    run.metric("loss", 2.5)
    run.note("examples", "**hello**")
    run.table("documents", documents)
    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    run.plot("loss", figure)
    run.check("converged", passed=False, description="loss stayed high", loss=2.5)


@artifact("evaluation/report", parents=["sft/model", "corpus/filtered"])
def report(run: Run) -> None:
    """A report."""
    CALLS.append(run.asset)
    run.write_json("report.json", run.parent("sft/model").json("model.json"))


@artifact("rlhf/prompts", parents=["corpus/filtered"])
def prompts(run: Run) -> None:
    """Prompts."""
    CALLS.append(run.asset)
    run.write_json("prompts.json", ["hello"])


GRAPH = (corpus, sft, report, prompts)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    CALLS.clear()
    return Home(tmp_path / "home")


# Reuse


def test_a_second_run_computes_nothing_and_says_so(home: Home) -> None:
    first = home.make(*GRAPH)
    assert reused(first) == dict.fromkeys(["corpus/filtered", "sft/model", "evaluation/report", "rlhf/prompts"], False)
    CALLS.clear()
    second = home.make(*GRAPH)
    assert CALLS == [] and set(reused(second).values()) == {True}


def test_a_reused_artifact_tells_dagster_the_same_as_when_it_was_made(home: Home) -> None:
    first, second = home.make(*GRAPH), home.make(*GRAPH)
    one, two = metadata(first, "sft/model"), metadata(second, "sft/model")
    assert one.pop("reused") is False and two.pop("reused") is True
    assert one == two
    told = [
        [(one.check_name, one.passed, one.description, one.metadata) for one in result.get_asset_check_evaluations()]
        for result in (first, second)
    ]
    assert told[0] == told[1] and len(told[0]) == 2


def test_another_hyper_parameter_recomputes_the_asset_and_what_depends_on_it_and_nothing_else(home: Home) -> None:
    home.make(*GRAPH)
    CALLS.clear()
    result = home.make(*GRAPH, config={"sft/model": {"learning_rate": 0.2}})
    assert CALLS == ["sft/model", "evaluation/report"]
    assert reused(result)["corpus/filtered"] and reused(result)["rlhf/prompts"]
    CALLS.clear()
    home.make(*GRAPH)
    assert CALLS == [] and home.current("evaluation/report").json("report.json")["learning_rate"] == 0.1


def test_a_config_field_that_decides_nothing_recomputes_nothing_and_is_recorded(home: Home) -> None:
    home.make(*GRAPH, config={"sft/model": {"log_every": 3}})
    CALLS.clear()
    home.make(*GRAPH, config={"sft/model": {"log_every": 4}})
    assert CALLS == [] and home.current("sft/model").manifest["config"]["log_every"] == 3


def test_recomputing_a_parent_to_the_same_bytes_recomputes_nothing_after_it(home: Home, tmp_path: Path) -> None:
    text = (
        "from homes import artifact\nfrom resources.recipe import Run\nfrom pathlib import Path\n"
        "@artifact('corpus/filtered', root=Path(__file__).parents[1])\n"
        "def corpus(run: Run) -> None:\n    '''Documents.'''\n    {}\n    run.write_json('a.json', 1)\n"
    )
    before = load_module(tmp_path, "assets.corpus", text.format("pass")).corpus
    home.make(before, prompts)
    key = home.current("corpus/filtered").key
    after = load_module(tmp_path, "assets.corpus", text.format("x = 1")).corpus
    result = home.make(after, prompts)
    assert home.current("corpus/filtered").key != key
    assert reused(result) == {"corpus/filtered": False, "rlhf/prompts": True}


def test_a_comment_changed_in_a_module_recomputes_nothing_and_a_changed_line_does(home: Home, tmp_path: Path) -> None:
    text = (
        "from pathlib import Path\nfrom homes import artifact\nfrom resources.recipe import Run\n"
        "@artifact('corpus/filtered', root=Path(__file__).parents[1])\n"
        "def corpus(run: Run) -> None:\n    '''Documents.'''\n    run.write_json('a.json', 1)  # one\n"
    )
    home.make(load_module(tmp_path, "assets.corpus", text).corpus)
    commented = text.replace("# one", "# the first").replace("Documents", "All documents")
    assert reused(home.make(load_module(tmp_path, "assets.corpus", commented).corpus)) == {"corpus/filtered": True}
    changed = text.replace("1)", "2)")
    assert reused(home.make(load_module(tmp_path, "assets.corpus", changed).corpus)) == {"corpus/filtered": False}
    assert home.current("corpus/filtered").json("a.json") == 2


def test_a_damaged_artifact_is_made_again_after_saying_so(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    home.make(*GRAPH)
    home.current("corpus/filtered").file("documents.parquet").unlink()
    CALLS.clear()
    result = home.make(*GRAPH)
    assert CALLS == ["corpus/filtered"]
    assert "lacks its file documents.parquet: moved to" in metadata(result, "corpus/filtered")["warning"]
    assert "lacks its file documents.parquet" in capfd.readouterr().err


def test_a_damaged_parent_is_refused_with_the_command_that_mends_it(home: Home) -> None:
    home.make(*GRAPH)
    home.current("corpus/filtered").file("documents.parquet").unlink()
    with pytest.raises(TampuError, match=r"lacks its file documents\.parquet: make it again with `tampu run"):
        home.make(*GRAPH, only=[sft])


def test_force_recomputes_and_keeps_one_artifact_when_the_bytes_are_the_same(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.make(*GRAPH)
    CALLS.clear()
    home.make(*GRAPH, only=[corpus], force=True)
    monkeypatch.setenv("TAMPU_FORCE", "1")
    home.make(*GRAPH, only=[corpus])
    assert CALLS == ["corpus/filtered"] * 2
    assert len(home.store.keys_of("corpus/filtered")) == 1


def test_force_keeps_both_artifacts_and_reports_the_difference_when_the_bytes_differ(home: Home) -> None:
    @artifact("corpus/documents")
    def unsteady(run: Run) -> None:
        """Not a function of its inputs."""
        run.write_json("same.json", 1)
        run.path("other.bin").write_bytes(os.urandom(8))

    @artifact("corpus/investigation", parents=["corpus/documents"])
    def child(run: Run) -> None:
        """Reads it."""
        run.write_json("version.json", run.parent("corpus/documents").data_version)

    home.make(unsteady, child)
    before = home.current("corpus/documents")
    result = home.make(unsteady, child, force=True)
    after = home.current("corpus/documents")
    assert after.key == f"{before.key}-2" and before.path.is_dir()
    assert "gave other bytes than before in other.bin" in metadata(result, "corpus/documents")["warning"]
    assert home.current("corpus/investigation").json("version.json") == after.data_version
    assert set(reused(home.make(unsteady, child)).values()) == {True}
    assert home.current("corpus/documents").key == after.key


def test_another_profile_reuses_equal_artifacts_and_never_reads_the_other_ones_pointers(home: Home) -> None:
    home.make(*GRAPH)
    home.profile = "smol"
    with pytest.raises(TampuError, match="corpus/filtered exists under the profile 'tiny' only, and this is 'smol'"):
        home.make(*GRAPH, only=[sft])
    assert set(reused(home.make(*GRAPH)).values()) == {True}
    assert [profile for profile, *_ in home.store.pointers()] == ["smol"] * 4 + ["tiny"] * 4


# What Dagster is told


def test_an_asset_has_description_group_kinds_owners_and_the_version_of_its_code() -> None:
    spec = next(iter(corpus.specs))
    assert spec.group_name == "corpus" and spec.kinds == {"polars"} and list(spec.owners) == ["team:data"]
    assert spec.description == "All documents.\n\nSecond paragraph."
    assert re.fullmatch(r"[0-9a-f]{12}", spec.code_version or "")
    check = next(iter(corpus.check_specs))
    assert (check.name, check.blocking, check.description) == ("not_empty", True, "has documents")


def test_a_materialization_carries_version_manifest_numbers_pictures_and_checks(home: Home) -> None:
    result = home.make(*GRAPH)
    made, shown = home.current("sft/model"), metadata(result, "sft/model")
    event = result.asset_materializations_for_node("sft__model")[0]
    assert event.tags is not None and event.tags["dagster/data_version"] == made.data_version
    assert shown["key"] == made.key and shown["data_version"] == made.data_version and shown["profile"] == "tiny"
    assert shown["loss"] == 2.5 and shown["examples"] == "**hello**" and "| a |" in shown["documents"]
    assert shown["plot loss"].startswith("![loss](data:image/png;base64,") and len(shown["plot loss"]) < 270_000
    assert shown["manifest"]["inputs"][0]["data_version"] == home.current("corpus/filtered").data_version
    (check,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "converged"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN and check.metadata["loss"].value == 2.5


def test_a_manifest_states_code_config_seed_commit_packages_hardware_energy_and_every_file(home: Home) -> None:
    home.make(*GRAPH)
    made = home.current("sft/model")
    manifest = made.manifest
    assert manifest["config"] == {"learning_rate": 0.1, "seed": 1, "log_every": 10} and manifest["seed"] == 1
    assert set(manifest["git"]) == {"commit", "dirty"} and manifest["packages"]["polars"] == pl.__version__
    assert manifest["hardware"]["cores"] == os.cpu_count() and manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 1_000_000 and manifest["carbon"][0]["device"] == "cpu core"
    for entry in manifest["files"]:
        content = made.file(entry["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    names = {one["name"] for one in manifest["files"]}
    assert names == {"model.json", "rows/training_metrics.parquet", "plots/loss.png"}


def test_the_same_asset_in_two_homes_has_the_same_key_and_the_same_bytes(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    home.make(*GRAPH)
    other.make(*GRAPH)
    assert home.current("evaluation/report").reference() == other.current("evaluation/report").reference()
    assert home.current("sft/model").data_version == other.current("sft/model").data_version


# Checks


def test_a_failed_blocking_check_stops_what_comes_after_in_this_run_and_in_later_ones(home: Home) -> None:
    @artifact("corpus/filtered", checks=[Check("not_empty", blocking=True)])
    def empty(run: Run) -> None:
        """No documents."""
        run.write_frame("documents.parquet", pl.DataFrame({"text": []}))
        run.check("not_empty", passed=False, documents=0)

    result = home.make(empty, prompts, check=False)
    assert not result.success and reused(result) == {"corpus/filtered": False}
    with pytest.raises(TampuError, match=r"rlhf/prompts cannot use corpus/filtered .*blocking check 'not_empty' failed"):
        home.make(empty, prompts, only=[prompts])


def test_a_declared_check_that_is_not_reported_is_an_error_and_so_is_an_undeclared_one(home: Home) -> None:
    @artifact("corpus/filtered", checks=[Check("not_empty")])
    def silent(run: Run) -> None:
        """Reports nothing."""

    @artifact("corpus/documents", checks=[Check("not_empty")])
    def chatty(run: Run) -> None:
        """Reports something else."""
        run.check("full", passed=True)

    with pytest.raises(TampuError, match="declares the check 'not_empty' and did not report it"):
        home.make(silent)
    with pytest.raises(TampuError, match="declares no check 'full': it declares not_empty"):
        home.make(chatty)
    assert home.store.everything() == []


# Inputs


def test_an_asset_may_read_only_what_it_declares(home: Home) -> None:
    @artifact("rlhf/prompts", parents=["corpus/filtered"])
    def curious(run: Run) -> None:
        """Reads something else."""
        run.parent("sft/model")

    with pytest.raises(TampuError, match=r"does not declare 'sft/model' in its parents \(corpus/filtered\)"):
        home.make(corpus, curious)


def test_a_parent_that_was_never_made_is_named_with_the_command_that_makes_it(home: Home) -> None:
    with pytest.raises(TampuError, match=r"corpus/filtered has not been made yet.*`tampu run --select corpus/filtered`"):
        home.make(*GRAPH, only=[prompts])


def raw_reader(path: Path, seen: list[Request]) -> dg.AssetsDefinition:
    def files(request: Request) -> dict[str, Path]:
        seen.append(request)
        return {"chitchat/dialogues": path}

    @artifact("corpus/documents", files=files)
    def documents(run: Run, config: Training) -> None:
        """Reads a raw file."""
        run.write_json("text.json", run.file("chitchat/dialogues").read_text())

    return documents


def test_raw_files_count_by_their_bytes_and_not_by_their_place(home: Home, tmp_path: Path) -> None:
    seen: list[Request] = []
    for name in ("one", "two"):
        (tmp_path / name).write_text("hello")
    asset = raw_reader(tmp_path / "one", seen)
    home.make(asset)
    assert (seen[0].asset, seen[0].profile, seen[0].home) == ("corpus/documents", "tiny", home.store.root)
    assert isinstance(seen[0].config, Training)
    assert reused(home.make(raw_reader(tmp_path / "two", seen))) == {"corpus/documents": True}
    (tmp_path / "one").write_text("other")
    assert reused(home.make(asset)) == {"corpus/documents": False}
    (file,) = home.current("corpus/documents").manifest["raw_files"]
    assert file["name"] == "chitchat/dialogues" and file["sha256"] == hashlib.sha256(b"other").hexdigest()


def test_a_raw_file_that_is_missing_or_changes_under_the_reader_is_refused(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with pytest.raises(TampuError, match=r"reads the raw file chitchat/dialogues, but .*/raw does not exist"):
        home.make(raw_reader(path, []))

    @artifact("corpus/documents", files=lambda request: {"raw": path})
    def careless(run: Run) -> None:
        """The file grows while it is read."""
        run.write_json("text.json", run.file("raw").read_text())
        path.write_text("hello, and more")

    path.write_text("hello")
    with pytest.raises(TampuError, match=r"/raw changed while corpus/documents read it: run again"):
        home.make(careless)
    assert home.store.everything() == []


# What a body may not do


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "manifest.json", "."])
def test_a_body_writes_inside_its_artifact_only(home: Home, name: str) -> None:
    @artifact("corpus/filtered")
    def escaping(run: Run) -> None:
        """Writes elsewhere."""
        run.path(name)

    with pytest.raises(TampuError, match="give a name inside the artifact"):
        home.make(escaping)


@pytest.mark.parametrize(
    ("report_it", "message"),
    [
        (lambda run: run.metric("loss", float("nan")), "metric 'loss' of corpus/filtered is nan: it must be a finite"),
        (lambda run: run.metric("seconds", 1.0), "metric 'seconds' of corpus/filtered has a name that every"),
        (lambda run: run.metric("loss", "low"), "is 'low': it must be a finite number"),
        (lambda run: run.write_json("a.json", {"loss": float("inf")}), "cannot write 'a.json' as JSON"),
        (lambda run: run.rows("losses", []), "there is no table 'losses' to write rows to"),
    ],
)
def test_values_that_nothing_can_hold_are_refused_by_name(home: Home, report_it: Any, message: str) -> None:
    @artifact("corpus/filtered")
    def asset(run: Run) -> None:
        """Reports what it should not."""
        report_it(run)

    with pytest.raises(TampuError, match=message):
        home.make(asset)


def test_a_number_a_note_and_a_table_of_one_name_are_all_shown(home: Home) -> None:
    @artifact("corpus/filtered")
    def asset(run: Run) -> None:
        """Examples in three forms."""
        run.metric("examples", 2)
        run.note("examples", "two of them")
        run.table("examples", pl.DataFrame({"example": ["a", "b"]}))

    shown = metadata(home.make(asset), "corpus/filtered")
    assert shown["examples"] == 2 and shown["examples (note)"] == "two of them" and "| a |" in shown["examples (table)"]


def test_a_plot_that_would_weigh_on_every_browser_is_refused(home: Home) -> None:
    @artifact("corpus/filtered")
    def heavy(run: Run) -> None:
        """Noise does not compress."""
        figure = Figure(figsize=(20, 20))
        figure.figimage([[os.urandom(1)[0] for _ in range(900)] for _ in range(900)])
        run.plot("noise", figure)

    with pytest.raises(TampuError, match=r"plot 'noise' of corpus/filtered has \d+ bytes, above 200000"):
        home.make(heavy)


def test_tables_for_people_survive_any_text() -> None:
    from resources.run import markdown_table

    frame = pl.DataFrame({"a|b": ["x\ny", "p|q", "z" * 400, None], "n": [0.123456, 1.0, None, 3e9]})
    text = markdown_table(frame, rows=3)
    lines = text.split("\n")
    assert lines[0] == "| a\\|b | n |" and lines[2] == "| x<br>y | 0.1235 |" and lines[3] == "| p\\|q | 1 |"
    assert len(lines[4]) < 310 and lines[-1] == "3 of 4 rows"


# Declarations that contradict themselves


def declare(**arguments: Any) -> None:
    def body(run: Run, config: Training) -> None:
        """Nothing."""

    artifact("rlhf/policy", **arguments)(body)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"previous": ["rlhf/chat_model"]}, 'need partitions="round"'),
        ({"starts_at_round": True}, 'need partitions="round"'),
        ({"partitions": "round", "previous": ["sft/data"]}, "previous='sft/data' is not pinned in rounds' records"),
        ({"partitions": "round", "history": ["rlhf/policy"]}, "history='rlhf/policy' is not pinned"),
        ({"partitions": "round", "starts_at_round": True}, "needs an int field from_round"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TampuError, match=message):
        declare(**arguments)


def test_a_body_takes_run_and_at_most_a_dagster_config() -> None:
    def three(run: Run, config: Training, more: int) -> None:
        """Too much."""

    def untyped(run, config):  # type: ignore[no-untyped-def]
        """Which config?"""

    with pytest.raises(TampuError, match=r"takes \(run\) or \(run, config\), not \(run, config, more\)"):
        artifact("rlhf/policy")(three)
    with pytest.raises(TampuError, match=r"annotate config with a class derived from dagster\.Config"):
        artifact("rlhf/policy")(untyped)


def test_a_field_left_out_of_the_key_must_exist() -> None:
    class Misspelled(dg.Config):
        NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_evry",)
        log_every: int = 1

    def body(run: Run, config: Misspelled) -> None:
        """Nothing."""

    with pytest.raises(TampuError, match="NOT_IDENTITY names 'log_evry', which its config does not have"):
        artifact("rlhf/policy")(body)


def test_a_parent_whose_module_was_not_imported_is_named(home: Home) -> None:
    @artifact("corpus/investigation", parents=["corpus/nowhere"])
    def orphan(run: Run) -> None:
        """Its parent is declared nowhere."""

    with pytest.raises(TampuError, match="parent 'corpus/nowhere', which is not declared: import its module"):
        home.make(orphan)


def test_a_config_value_that_is_not_a_number_is_refused(home: Home) -> None:
    with pytest.raises(TampuError, match=r"the config of sft/model has a value that is no plain number or text"):
        home.make(*GRAPH, config={"sft/model": {"learning_rate": float("nan")}})


def test_a_wrong_type_in_the_launchpad_is_refused_by_dagster(home: Home) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        home.make(*GRAPH, config={"sft/model": {"learning_rate": "fast"}})
