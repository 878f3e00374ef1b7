"""The artifact store: whole or absent, trusted only when intact, one run at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from homes import Home, artifact, start

from resources.errors import TampuError
from resources.locks import one_run
from resources.manifests import REQUIRED
from resources.recipe import Run
from resources.store import Artifact, ArtifactStore, natural

ASSET = "corpus/filtered"
IDENTITY = "0123456789abcdef0123"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(home=str(tmp_path / "home"))


def facts(**changes: Any) -> dict[str, Any]:
    filled: dict[str, Any] = dict.fromkeys(REQUIRED)
    for name in ("inputs", "cited", "raw_files", "plots", "tables", "checks", "carbon", "not_identity"):
        filled[name] = []
    filled |= {"asset": ASSET, "identity": IDENTITY, "code_version": "c0de", "applied": True}
    filled |= {"metrics": {}, "config": {}}
    for name in ("key", "data_version", "files", "differs_from"):
        del filled[name]
    return filled | changes


def write(store: ArtifactStore, **files: str) -> tuple[Artifact, list[str]]:
    folder = store.begin(ASSET, IDENTITY)
    for name, text in (files or {"a": "alpaca"}).items():
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / name).write_text(text)
    return store.commit(folder, facts(), None)


def test_what_was_written_can_be_read_back_by_key(store: ArtifactStore) -> None:
    made, said = write(store)
    assert (made.key, said) == (IDENTITY, [])
    again = store.open(ASSET, IDENTITY)
    assert again.file("deep/a").read_text() == "alpaca"
    assert again.file("deep").is_dir()
    assert again.data_version == made.data_version
    assert [entry["bytes"] for entry in again.manifest["files"]] == [6]
    with pytest.raises(TampuError, match=r"has no file 'b': it has deep/a"):
        again.file("b")


def test_a_folder_that_is_still_being_written_is_no_artifact(store: ArtifactStore) -> None:
    folder = store.begin(ASSET, IDENTITY)
    (folder / "a").write_text("half")
    assert store.keys_of(ASSET) == [] and store.everything() == []
    with pytest.raises(TampuError, match="has no manifest"):
        store.open(ASSET, IDENTITY)


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])


def edit_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"metrics": {"win_rate": 0.99}}))


def remove_file(path: Path) -> None:
    (path / "deep" / "a").unlink()


def cut_file(path: Path) -> None:
    (path / "deep" / "a").write_text("alp")


def swap_manifest(path: Path) -> None:
    shutil.move(path, path.with_name("f" * 20))
    shutil.copytree(path.with_name("f" * 20), path.with_name("0123456789abcdef0123"))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({"asset": manifest["asset"]}))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (remove_manifest, "has no manifest.json"),
        (cut_manifest, "has a manifest.json that is no JSON"),
        (edit_manifest, "was edited after it was written"),
        (remove_file, "lacks its file deep/a"),
        (cut_file, "has 3 bytes in deep/a where the manifest says 6"),
        (swap_manifest, "has a manifest.json without partitions"),
    ],
)
def test_a_damaged_artifact_is_not_trusted_and_moves_aside_when_it_would_be_reused(store: ArtifactStore, damage: Any, problem: str) -> None:
    made, _ = write(store)
    damage(made.path)
    with pytest.raises(TampuError, match=f"{problem}.*tampu run --select corpus/filtered"):
        store.open(ASSET, IDENTITY)
    found, said = store.find(ASSET, IDENTITY, None, "tiny")
    assert found is None
    assert len(said) == 1 and problem in said[0] and f".damaged-{IDENTITY}-1" in said[0]
    assert (made.path.parent / f".damaged-{IDENTITY}-1").is_dir()
    assert write(store)[0].key == IDENTITY


def test_an_artifact_under_another_artifacts_name_is_not_trusted(store: ArtifactStore) -> None:
    made, _ = write(store)
    shutil.copytree(made.path, made.path.with_name("f" * 20))
    with pytest.raises(TampuError, match=f"has the manifest of corpus/filtered {IDENTITY}"):
        store.open(ASSET, "f" * 20)


def test_the_same_bytes_again_are_the_same_artifact(store: ArtifactStore) -> None:
    first, _ = write(store)
    second, said = write(store)
    assert (second.path, said) == (first.path, [])
    assert sorted(path.name for path in first.path.parent.iterdir()) == [IDENTITY]


def test_other_bytes_under_the_same_identity_keep_both_and_say_which_files_differ(store: ArtifactStore) -> None:
    first, _ = write(store, a="alpaca", b="same")
    second, said = write(store, a="llama", b="same", c="new")
    third, _ = write(store, a="vicuna")
    assert [second.key, third.key] == [f"{IDENTITY}-2", f"{IDENTITY}-3"]
    assert second.manifest["differs_from"] == {
        "key": IDENTITY,
        "data_version": first.data_version,
        "files": ["deep/a", "deep/c"],
    }
    assert "gave other bytes than before in deep/a, deep/c" in said[0]
    assert store.open(ASSET, IDENTITY).file("deep/a").read_text() == "alpaca"
    assert write(store, a="llama", b="same", c="new")[0].key == second.key


def test_of_several_artifacts_of_one_identity_the_current_one_is_found_else_the_latest(store: ArtifactStore) -> None:
    first, _ = write(store, a="alpaca")
    second, _ = write(store, a="llama")
    assert store.find(ASSET, IDENTITY, None, "tiny")[0] == second
    store.point(first, "tiny")
    assert store.find(ASSET, IDENTITY, None, "tiny")[0] == first


def test_bytes_that_changed_at_the_same_size_are_found_when_the_artifact_is_recomputed(store: ArtifactStore) -> None:
    made, _ = write(store, a="alpaca")
    made.file("deep/a").write_text("alpacA")
    assert store.find(ASSET, IDENTITY, None, "tiny")[0] is not None
    again, said = write(store, a="alpaca")
    assert again.key == IDENTITY and again.file("deep/a").read_text() == "alpaca"
    assert "has other bytes in deep/a" in said[0]


def test_recomputing_a_damaged_artifact_to_other_bytes_is_reported(store: ArtifactStore) -> None:
    made, _ = write(store, a="alpaca")
    made.file("deep/a").unlink()
    store.find(ASSET, IDENTITY, None, "tiny")
    again, said = write(store, a="llama")
    assert again.key == IDENTITY and "gave other bytes than before in deep/a" in said[0]
    assert again.manifest["differs_from"]["data_version"] == made.data_version


def test_a_link_is_not_accepted_as_a_file_of_an_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    folder = store.begin(ASSET, IDENTITY)
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(TampuError, match="link: an artifact holds files of its own"):
        store.commit(folder, facts(), None)


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(store: ArtifactStore) -> None:
    folder = store.folder(ASSET)
    folder.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = folder / f".{IDENTITY}.{ended.pid}.tmp", folder / f".{IDENTITY}.{os.getppid()}.tmp"
    for path in (dead, living):
        path.mkdir()
        (path / "half").write_text("half")
    store.begin(ASSET, IDENTITY)
    assert not dead.exists() and (living / "half").exists()


# Pointers


def test_what_is_current_is_found_by_profile_and_the_missing_says_how_to_make_it(store: ArtifactStore) -> None:
    made, _ = write(store)
    with pytest.raises(TampuError, match=r"has not been made yet under the profile 'tiny'.*tampu run --select corpus/f"):
        store.current(ASSET, None, "tiny")
    store.point(made, "smol")
    assert store.current(ASSET, None, "smol").key == IDENTITY
    with pytest.raises(TampuError, match=r"under the profile 'smol' only, and this is 'tiny'.*TAMPU_PROFILE=tiny tampu"):
        store.current(ASSET, None, "tiny")
    with pytest.raises(TampuError, match=r"corpus/filtered\[v2\] has not.*--round v2"):
        store.current(ASSET, "v2", "tiny")


def test_partitions_come_in_the_order_in_which_people_count(store: ArtifactStore) -> None:
    made, _ = write(store)
    for name in ("v10", "v2", "v1"):
        store.point(Artifact(ASSET, name, made.key, made.data_version, made.path, made.manifest), "tiny")
    store.point(made, "tiny")
    assert store.partitions(ASSET, "tiny") == ["v1", "v2", "v10"]
    assert store.pointers("smol") == []
    assert sorted(["b10", None, "b9", "a"], key=natural) == [None, "a", "b9", "b10"]


def test_a_damaged_pointer_says_so_and_does_not_keep_the_asset_from_being_made_again(store: ArtifactStore) -> None:
    made, _ = write(store)
    store.point(made, "tiny")
    (store.root / "current/tiny/corpus/filtered/_.json").write_text("{")
    with pytest.raises(TampuError, match="is damaged: make it again with `tampu run --select corpus/filtered`"):
        store.current(ASSET, None, "tiny")
    found, said = store.find(ASSET, IDENTITY, None, "tiny")
    assert found is not None and "written anew" in said[0]


# Troubles of a run

SCRIPT = """
import sys
import dagster as dg
from resources.recipe import Run, artifact
from resources.store import ArtifactStore

@artifact("corpus/filtered")
def filtered(run: Run) -> None:
    run.path("weights").write_text("x" * 100_000)
    print("writing", flush=True)
    sys.stdin.readline()

store = ArtifactStore(home=sys.argv[1])
dg.materialize([filtered], resources={"store": store}, instance=dg.DagsterInstance.ephemeral())
print("done", flush=True)
"""


@artifact("corpus/filtered")
def filtered(run: Run) -> None:
    """Something small."""
    run.path("weights").write_text("x")


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    home = Home(tmp_path / "home")
    process = start(tmp_path / "script.py", str(home.store.root))
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    left = list(home.store.folder(ASSET).iterdir())
    assert [path.name.endswith(f".{process.pid}.tmp") for path in left] == [True]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert home.store.everything() == [] and home.store.pointers() == []
    home.make(filtered)
    assert home.current(ASSET).file("weights").read_text() == "x"
    assert [path.name for path in home.store.folder(ASSET).iterdir()] == [home.current(ASSET).key]


def test_a_second_run_on_a_home_is_refused_with_the_first_ones_pid_and_the_first_goes_on(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    home = Home(tmp_path / "home")
    process = start(tmp_path / "script.py", str(home.store.root))
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    with pytest.raises(dg.DagsterResourceFunctionError) as refused:
        home.make(filtered)
    assert isinstance(refused.value.user_exception, TampuError)
    assert f"(pid {process.pid}, since " in str(refused.value.user_exception)
    out, _ = process.communicate("go\n")
    assert (process.returncode, out) == (0, "done\n")
    home.make(filtered)


def test_an_interrupt_leaves_no_folder_behind(tmp_path: Path) -> None:
    @artifact("corpus/filtered")
    def interrupted(run: Run) -> None:
        """Stopped by a person."""
        run.path("weights").write_text("x")
        raise KeyboardInterrupt

    home = Home(tmp_path / "home")
    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        home.make(interrupted)
    assert list(home.store.folder(ASSET).iterdir()) == []


def test_a_process_may_hold_a_home_twice_and_processes_of_one_run_share_it(tmp_path: Path) -> None:
    script = tmp_path / "hold.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom resources.locks import one_run\n"
        "try:\n    with one_run(Path(sys.argv[1]), sys.argv[2]):\n        print('held')\n"
        "except Exception as error:\n    print(error)\n"
    )
    home = tmp_path / "home"

    def tried(run: str) -> str:
        return start(script, str(home), run).communicate()[0]

    with one_run(home, "one"), one_run(home, "one"):
        assert tried("one") == "held\n"
        assert f"another run works on TAMPU_HOME={home} (pid {os.getpid()}" in tried("two")
    assert tried("two") == "held\n"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    @artifact("corpus/filtered")
    def too_large(run: Run) -> None:
        """Writes to a device that is always full."""
        run.path("weights").symlink_to("/dev/full")
        run.path("weights").write_text("x")

    home = Home(tmp_path / "home")
    with pytest.raises(TampuError, match=r"the disk under TAMPU_HOME=.*home is full: free some space"):
        home.make(too_large)
    assert list(home.store.folder(ASSET).iterdir()) == []


def test_a_full_disk_under_a_frame_is_the_same_sentence(tmp_path: Path) -> None:
    import polars as pl

    @artifact("corpus/filtered")
    def too_large(run: Run) -> None:
        """A library reports the full disk in words of its own."""
        run.path("a.parquet").symlink_to("/dev/full")
        pl.DataFrame({"a": [1]}).write_parquet(run.path("a.parquet"))

    with pytest.raises(TampuError, match=r"is full: free some space"):
        Home(tmp_path / "home").make(too_large)


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    home = tmp_path / "file" if place == "a file" else tmp_path / "file" / "home"
    with pytest.raises(dg.DagsterResourceFunctionError) as refused:
        Home(home).make(filtered)
    error = refused.value.user_exception
    assert isinstance(error, TampuError)
    assert str(error).startswith(f"cannot write below TAMPU_HOME={home} (") and "set TAMPU_HOME" in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_write_permission_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(dg.DagsterResourceFunctionError) as refused:
        Home(tmp_path / "home").make(filtered)
    assert "Permission denied" in str(refused.value.user_exception)
