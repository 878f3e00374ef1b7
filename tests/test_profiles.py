"""Profiles: sizes by name or from a TOML file; whatever is wrong with one is said by name."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.environment import active_profile
from resources.errors import TampuError
from resources.profiles import MAY_BE_ZERO, PROFILES, Profile, active, load_profile
from resources.prompts.pool import PoolSizes, template_prompts
from resources.splits import Split

NUMBERS = {field.name: field.type for field in fields(Profile) if field.type in (int, float)}


def toml(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_built_in_profile_is_found_by_its_name(name: str) -> None:
    assert load_profile(name) is PROFILES[name] and PROFILES[name].name == name


def test_a_toml_file_changes_its_base_and_nothing_else(tmp_path: Path) -> None:
    made = load_profile(toml(tmp_path, 'base = "micro"\ndim = 64\npretraining_learning_rate = 1e-3\n'))
    assert asdict(made) == {**asdict(PROFILES["micro"]), "name": "mine", "dim": 64, "pretraining_learning_rate": 1e-3}


def test_the_base_is_tiny_unless_another_is_named(tmp_path: Path) -> None:
    assert asdict(load_profile(toml(tmp_path, ""))) == {**asdict(PROFILES["tiny"]), "name": "mine"}


@given(st.sampled_from(sorted(NUMBERS)), st.integers(1, 10**6))
def test_every_number_can_be_set(tmp_path_factory: pytest.TempPathFactory, key: str, value: int) -> None:
    share = key.endswith("_share")
    made = load_profile(toml(tmp_path_factory.mktemp("profile"), f"{key} = {value / (10**6 + 1) if share else value}"))
    assert getattr(made, key) == pytest.approx(value / (10**6 + 1) if share else value)
    assert type(getattr(made, key)) is NUMBERS[key]


def test_a_whole_number_for_a_fraction_is_the_same_setting_as_the_fraction(tmp_path: Path) -> None:
    made = load_profile(toml(tmp_path, "pretraining_learning_rate = 1"))
    assert repr(made.pretraining_learning_rate) == "1.0"


@pytest.mark.parametrize("name", ["huge", "", "tiny.toml", "/nowhere/mine.toml", "README.md", "../tiny"])
def test_an_unknown_profile_is_refused_by_name_with_the_choices(name: str) -> None:
    with pytest.raises(TampuError, match=rf"unknown profile '{name}': choose one of tiny, micro"):
        load_profile(name)


def test_an_unknown_base_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TampuError, match=r"base = 'huge' is unknown, choose one of tiny, micro"):
        load_profile(toml(tmp_path, 'base = "huge"'))
    with pytest.raises(TampuError, match=r"base = \['tiny'\] is unknown"):
        load_profile(toml(tmp_path, 'base = ["tiny"]'))


@pytest.mark.parametrize("key", ["dims", "Dim", "name", "pretraining"])
def test_an_unknown_key_is_refused_by_name_with_the_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(TampuError, match=rf"mine\.toml: unknown key '{key}'; the keys are .*\bdim\b"):
        load_profile(toml(tmp_path, f'{key} = "x"'))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ('dim = "128"', "dim = '128', expected a whole number"),
        ("dim = 128.0", r"dim = 128\.0, expected a whole number"),
        ("dim = true", "dim = True, expected a whole number"),
        ("dim = [128]", r"dim = \[128\], expected a whole number"),
        ('pretraining_learning_rate = "fast"', "pretraining_learning_rate = 'fast', expected a number"),
        ("pretraining_learning_rate = true", "pretraining_learning_rate = True, expected a number"),
        ("annotator_noise = 2023-01-02", "annotator_noise = .*, expected a number"),
        ("[dim]\nvalue = 3", "dim = {'value': 3}, expected a whole number"),
    ],
)
def test_a_wrong_type_is_refused_with_key_value_and_expectation(tmp_path: Path, setting: str, expected: str) -> None:
    with pytest.raises(TampuError, match=rf"mine\.toml: {expected}"):
        load_profile(toml(tmp_path, setting))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("dim = 0", "dim = 0, expected above 0"),
        ("layers = -1", "layers = -1, expected above 0"),
        ("pretraining_learning_rate = nan", "pretraining_learning_rate = nan, expected above 0"),
        ("reward_learning_rate = inf", "reward_learning_rate = inf, expected above 0"),
        ("annotator_noise = -0.1", r"annotator_noise = -0\.1, expected 0 or more"),
        ("test_share = 1.0", r"test_share = 1\.0, expected above 0 and below 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(tmp_path: Path, setting: str, expected: str) -> None:
    with pytest.raises(TampuError, match=rf"mine\.toml: {expected}"):
        load_profile(toml(tmp_path, setting))


@pytest.mark.parametrize("key", sorted(MAY_BE_ZERO))
def test_what_a_profile_may_do_without_can_be_zero(tmp_path: Path, key: str) -> None:
    assert getattr(load_profile(toml(tmp_path, f"{key} = 0")), key) == 0


def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TampuError, match=r"mine\.toml: not a TOML file"):
        load_profile(toml(tmp_path, "dim = = 3"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TampuError, match=r"binary\.toml: not a TOML file"):
        load_profile(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_file_can_not_take_a_built_in_profiles_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(TampuError, match=f"the name '{name}' belongs to a built-in profile"):
        load_profile(toml(tmp_path, "dim = 64", name=name))


def test_everything_runs_under_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml(tmp_path, "dim = 64")
    monkeypatch.setenv("TAMPU_PROFILE", path)
    active.cache_clear()
    try:
        assert active_profile() == active().name == "mine" and active().dim == 64
        monkeypatch.setenv("TAMPU_PROFILE", "")
        active.cache_clear()
        assert active_profile() == active().name == "tiny"
    finally:
        active.cache_clear()


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_templates_give_the_prompts_that_a_built_in_profile_asks_for(name: str, split: Split) -> None:
    profile = PROFILES[name]
    prefix = "" if split == "train" else f"{split}_"
    tasks, unsafe, borderline = (getattr(profile, f"{prefix}{family}_prompts") for family in ("task", "unsafe", "borderline"))
    unseen = profile.test_unseen_action_prompts if split == "test" else 0
    sizes = PoolSizes(tasks=tasks, unsafe=unsafe, borderline=borderline, chats=0, unseen_actions=unseen)
    made = template_prompts(split, sizes, validation=profile.validation_share, test=profile.test_share, seed=1)
    assert len(made) == tasks + unsafe + borderline + unseen
