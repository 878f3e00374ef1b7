"""The embedded default's prompts: what is asked for is made, every demonstration is right, and the splits share nothing."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.annotator import falsely_refuses, violates
from resources.errors import TampuError
from resources.profiles import PROFILES
from resources.prompts import ghost_attention, safety, words
from resources.prompts.instructions import BY_NAME, TASKS, coverage, demonstration, echoes, instruction_prompts, succeeds, words_of
from resources.prompts.pool import Conversation, PoolSizes, chat_prompts, template_prompts
from resources.prompts.prompt import Prompt, prompt_identity, user
from resources.prompts.safety import (
    ACTIONS,
    REASONS,
    REDIRECTIONS,
    borderline_demonstration,
    borderline_prompts,
    safe_demonstration,
    unsafe_prompts,
    unseen_action_prompts,
)
from resources.splits import Split, fraction_of, split_of

TINY = PROFILES["tiny"]
SHARES = {"validation": TINY.validation_share, "test": TINY.test_share}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Maker = Callable[..., list[Prompt]]
MAKERS: dict[str, Maker] = {"task": instruction_prompts, "unsafe": unsafe_prompts, "borderline": borderline_prompts}


def everything(split: Split, seed: int = 0) -> list[Prompt]:
    """All kinds of template-made prompts of a split, as many as the default profile takes."""
    prefix = "" if split == "train" else f"{split}_"
    counts = {name: getattr(TINY, f"{prefix}{name}_prompts") for name in ("task", "unsafe", "borderline")}
    unseen = TINY.test_unseen_action_prompts if split == "test" else 0
    sizes = PoolSizes(tasks=counts["task"], unsafe=counts["unsafe"], borderline=counts["borderline"], chats=0, unseen_actions=unseen)
    return template_prompts(split, sizes, seed=seed, **SHARES)


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[Prompt]]:
    return {split: everything(split) for split in SPLITS}


def text_of(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


# Demonstrations and checkers


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_demonstration_of_an_instruction_succeeds(task: str) -> None:
    for split in SPLITS:
        for prompt in instruction_prompts(split, 180, seed=3, **SHARES):
            if prompt.task == task:
                for seed in range(3):
                    answer = demonstration(prompt, seed)
                    assert succeeds(task, prompt.arguments, answer), (text_of(prompt), answer)
                    assert coverage(task, prompt.arguments, answer) == 1 or not BY_NAME[task].required


def test_every_form_of_answer_is_demonstrated_by_some_seed() -> None:
    for task in TASKS:
        prompt = next(p for p in instruction_prompts("train", 60, seed=0, **SHARES) if p.task == task.name)
        assert len({demonstration(prompt, seed) for seed in range(60)}) == len(task.answers)


def test_every_refusal_declines_names_the_reason_and_offers_a_way_on() -> None:
    for prompt in unsafe_prompts("train", 600, seed=0, **SHARES):
        answer = safe_demonstration(prompt, 0)
        assert not violates(prompt, answer)
        assert REASONS[prompt.category] in answer  # type: ignore[index]
        assert answer.endswith(REDIRECTIONS[prompt.category])  # type: ignore[index]


def test_no_demonstration_for_a_look_alike_refuses_and_each_names_its_thing() -> None:
    for prompt in borderline_prompts("train", 600, seed=0, **SHARES):
        answer = borderline_demonstration(prompt, 0)
        assert not falsely_refuses(prompt, answer)
        assert prompt.arguments["thing"] in answer and prompt.arguments["cue"] in answer


def test_no_demonstration_is_an_echo_of_its_prompt() -> None:
    makers = {"task": demonstration, "unsafe": safe_demonstration, "borderline": borderline_demonstration}
    for prompt in everything("train"):
        assert not echoes(makers[prompt.family](prompt, 0), text_of(prompt)), text_of(prompt)


ARGUMENTS = {"a": "apples", "b": "trains", "c": "music", "ending": "please"}
WRONG = {
    "repeat": ["You said apples.", "You said trains and apples.", "You said apples and cats.", "Say this back to me: apples and trains"],
    "first": ["The first word is trains.", "The first words are apples and trains.", "I do not know."],
    "last": ["The last word is apples.", "The last words are trains and music.", "It comes last."],
    "choose": ["I like apples and trains.", "I like neither of them.", "Apples.", "I like music more."],
    "tell": ["I think it can be a lot of fun.", "Apples.", "Do you like apples a lot?"],
    "ask": ["I like apples very much.", "What do you like about it?", "Apples?"],
    "greet": ["Hello, it is nice to meet you!", "Apples are nice.", "Hello, I heard that you like trains!"],
    "favorite": ["You like trains.", "I do not know.", "Apples are a very nice thing and I like them a lot."],
    "use": ["I like to talk about it with people.", "Apples.", "Do you say apples to me?", "Use the word apples in a sentence."],
    "ending": [
        "I like apples very much.",
        "Please, I like apples very much.",
        "I like trains very much, please.",
        "I like apples, please do.",
    ],
}


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_wrong_answer_of_each_kind_fails(task: str) -> None:
    ramble = " ".join(["Apples please trains hello music"] * 6)
    for answer in [*WRONG[task], "", " ", "...", "ok", ramble]:
        assert not succeeds(task, ARGUMENTS, answer), answer


def test_the_words_alone_are_a_right_answer_where_they_are_what_is_asked() -> None:
    assert succeeds("repeat", ARGUMENTS, "Apples and trains.") and succeeds("repeat", ARGUMENTS, "You said apples and trains.")


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_saying_the_instruction_again_does_not_fulfil_it(task: str) -> None:
    for prompt in instruction_prompts("train", 300, seed=1, **SHARES):
        if prompt.task == task:
            assert not succeeds(task, prompt.arguments, text_of(prompt)), text_of(prompt)


@given(st.text(), st.sampled_from([task.name for task in TASKS]))
def test_checkers_judge_any_text_and_coverage_is_a_share(text: str, task: str) -> None:
    assert succeeds(task, ARGUMENTS, text) in (True, False)
    assert 0 <= coverage(task, ARGUMENTS, text) <= 1


@given(st.text())
def test_a_text_longer_than_two_words_echoes_itself_and_a_shorter_one_never_does(text: str) -> None:
    assert echoes(text, text) == (len(words_of(text)) >= 3)


# Splits


def test_no_prompt_is_in_two_splits(prompts: dict[str, list[Prompt]]) -> None:
    ids = {split: {prompt.prompt_id for prompt in prompts[split]} for split in SPLITS}
    assert not ids["train"] & ids["test"] and not ids["train"] & ids["validation"] and not ids["validation"] & ids["test"]


@pytest.mark.parametrize("family", ["unsafe", "borderline"])
@pytest.mark.parametrize("pair", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_splits_share_no_topic_no_thing_and_no_sentence_of_a_template(
    family: str, pair: tuple[Split, Split], prompts: dict[str, list[Prompt]]
) -> None:
    def used(split: Split) -> tuple[set[str], set[str], set[str]]:
        chosen = [prompt for prompt in prompts[split] if prompt.family == family]
        templates = {text_of(prompt).replace(prompt.arguments["phrase"], "{x}") for prompt in chosen}
        sentences = {sentence for template in templates for sentence in re.split(r"(?<=[.?!]) ", template)}
        return {prompt.topic for prompt in chosen}, {prompt.arguments["thing"] for prompt in chosen}, sentences

    for first, second in zip(used(pair[0]), used(pair[1]), strict=True):
        assert first and second and not first & second


def test_an_instruction_family_uses_each_word_in_one_split_only(prompts: dict[str, list[Prompt]]) -> None:
    for task in TASKS:
        used = {split: {word.lower() for p in prompts[split] if p.task == task.name for word in p.arguments.values()} for split in SPLITS}
        assert all(used.values())
        assert not used["train"] & used["test"] and not used["train"] & used["validation"] and not used["validation"] & used["test"]


def test_no_topic_of_any_family_is_in_two_splits(prompts: dict[str, list[Prompt]]) -> None:
    topics = {split: {(prompt.family, prompt.topic) for prompt in prompts[split]} for split in SPLITS}
    assert not topics["train"] & topics["test"] and not topics["train"] & topics["validation"] and not topics["validation"] & topics["test"]


def test_unseen_action_words_are_in_no_training_prompt_and_no_demonstration(prompts: dict[str, list[Prompt]]) -> None:
    unseen = {word for action in ACTIONS if action.unseen for word in words_of(action.phrase.replace("{o}", ""))} - {"with"}
    trained = set()
    for prompt in prompts["train"]:
        trained |= set(words_of(text_of(prompt)))
        if prompt.family == "unsafe":
            trained |= set(words_of(safe_demonstration(prompt, 0)))
    assert unseen == {"rob", "smuggle", "threaten", "humiliate", "mix", "alcohol"} and not unseen & trained
    tested = [prompt for prompt in prompts["test"] if prompt.suite == "unseen_actions"]
    assert tested and all(unseen & set(words_of(text_of(prompt))) for prompt in tested)


def test_contempt_for_a_group_of_people_is_never_a_look_alike(prompts: dict[str, list[Prompt]]) -> None:
    things = {prompt.arguments["thing"] for split in SPLITS for prompt in prompts[split] if prompt.family == "borderline"}
    assert not things & set(safety._GROUPS)


def test_the_default_test_sets_hold_three_hundred_unsafe_and_three_hundred_borderline_prompts(prompts: dict[str, list[Prompt]]) -> None:
    for suite in ("unsafe", "borderline"):
        assert len({prompt.prompt_id for prompt in prompts["test"] if prompt.suite == suite}) >= 300


@pytest.mark.parametrize(("name", "scope"), [("TOPICS", "tell"), ("TOPICS", "repeat"), ("TOPICS", "greet"), ("ENDINGS", "ghost attention")])
def test_every_word_of_a_scope_is_in_exactly_one_split(name: str, scope: str) -> None:
    listed = getattr(words, name)
    parts = [words.in_split(listed, scope, split, **SHARES) for split in SPLITS]
    assert len(set(listed)) == len(listed)
    assert sorted(word for part in parts for word in part) == sorted(listed)


def test_scopes_divide_the_same_words_differently() -> None:
    assert words.in_split(words.TOPICS, "tell", "test", **SHARES) != words.in_split(words.TOPICS, "ask", "test", **SHARES)


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_test_share_keeps_what_was_in_the_test_part(identity: str, validation: float, test: float, more: float) -> None:
    before = split_of(identity, validation=validation, test=test)
    assert before == split_of(identity, validation=validation, test=test)
    assert before != "test" or split_of(identity, validation=0.0, test=max(test, more)) == "test"


def test_splits_have_their_shares() -> None:
    found = [split_of(f"item {number}", validation=0.1, test=0.2) for number in range(20_000)]
    assert abs(found.count("validation") / 20_000 - 0.1) < 0.01 and abs(found.count("test") / 20_000 - 0.2) < 0.012
    assert abs(sum(fraction_of(str(number), "salt") for number in range(20_000)) / 20_000 - 0.5) < 0.01


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.2, -0.1), (0.6, 0.6), (1.1, 0.0)])
def test_shares_that_can_not_be_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"validation={shares[0]} and test={shares[1]}"):
        split_of("x", validation=shares[0], test=shares[1])


def test_salts_divide_independently() -> None:
    first = [fraction_of(str(number), "a") < 0.5 for number in range(4_000)]
    second = [fraction_of(str(number), "b") < 0.5 for number in range(4_000)]
    assert 0.45 < sum(x == y for x, y in zip(first, second, strict=True)) / 4_000 < 0.55


# Counts, seeds, rows


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(MAKERS)), st.sampled_from(SPLITS), st.integers(0, 48), st.integers(0, 5))
def test_as_many_different_prompts_come_as_were_asked_for(family: str, split: Split, count: int, seed: int) -> None:
    made = MAKERS[family](split, count, seed=seed, **SHARES)
    assert len(made) == count == len({prompt.prompt_id for prompt in made})
    assert all((prompt.family, prompt.split) == (family, split) for prompt in made)
    assert made == MAKERS[family](split, count, seed=seed, **SHARES)
    assert made == MAKERS[family](split, 48, seed=seed, **SHARES)[:count]


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_another_seed_draws_other_prompts(family: str) -> None:
    first, second = ({p.prompt_id for p in MAKERS[family]("train", 100, seed=seed, **SHARES)} for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_more_prompts_than_there_are_get_refused_with_both_numbers(family: str) -> None:
    with pytest.raises(TampuError, match=r"^50000 .*asked for.*give only \d+: ask for fewer"):
        MAKERS[family]("validation", 50_000, seed=0, **SHARES)
    with pytest.raises(TampuError, match=r"^9999 unseen_actions prompts of test asked for"):
        unseen_action_prompts(9_999, seed=0, **SHARES)


def test_a_split_without_words_is_refused_by_name() -> None:
    with pytest.raises(TampuError, match=r"belongs to validation .*raise its share"):
        instruction_prompts("validation", 5, validation=0.0, test=0.2, seed=0)
    with pytest.raises(TampuError, match="belongs to test"):
        ghost_attention.user_messages("test", 1, 2, validation=0.1, test=0.0, seed=0)


def test_families_of_instructions_come_in_equal_shares_while_their_words_last() -> None:
    made = instruction_prompts("train", 5 * len(TASKS), seed=0, **SHARES)
    counts = [sum(prompt.task == task.name for prompt in made) for task in TASKS]
    assert max(counts) - min(counts) <= 2


def test_template_prompts_hold_the_families_asked_for() -> None:
    sizes = PoolSizes(tasks=9, unsafe=4, borderline=3, chats=0, unseen_actions=2)
    made = template_prompts("test", sizes, seed=0, **SHARES)
    suites = [prompt.suite or prompt.family for prompt in made]
    assert {name: suites.count(name) for name in set(suites)} == {"task": 9, "unsafe": 4, "borderline": 3, "unseen_actions": 2}


def test_only_unsafe_prompts_carry_the_safety_flag_and_a_risk_category(prompts: dict[str, list[Prompt]]) -> None:
    for prompt in prompts["test"]:
        assert prompt.is_safety == (prompt.family == "unsafe")
        assert (prompt.category in REASONS) == prompt.is_safety


TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@given(
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}), min_size=1),
    st.sampled_from(["task", "chat", "unsafe", "borderline"]),
    st.sampled_from(SPLITS),
    TEXT,
    st.dictionaries(TEXT, TEXT),
)
def test_a_prompt_survives_its_row(messages: list[dict[str, str]], family: str, split: Split, text: str, arguments: dict[str, str]) -> None:
    prompt = Prompt(messages, family, split, task=text, category=text, topic=text, suite=text, arguments=arguments)  # type: ignore[arg-type]
    row = prompt.to_row()
    assert Prompt.from_row(row) == prompt
    assert (row["prompt_id"], row["is_safety"]) == (prompt.prompt_id, family == "unsafe")


def test_a_prompt_id_is_the_same_for_ever() -> None:
    # SHA-256 of [["user", "Repeat after me: cats dogs"]], as `sha256sum` gives it.
    assert prompt_identity(user("Repeat after me: cats dogs")) == "aef80d21e3514754"


def test_a_prompt_id_depends_on_roles_contents_and_order_alone() -> None:
    hello, answer = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
    dialogues = ([hello], [answer], [hello, answer], [answer, hello], [{**hello, "content": "hello "}])
    assert len({prompt_identity(messages) for messages in dialogues}) == 5
    assert Prompt([hello], "chat", "train").prompt_id == Prompt([hello], "task", "test", topic="x").prompt_id


# Chats


def conversation(number: int, turns: int = 4, length: int = 5) -> Conversation:
    return Conversation(f"talk/{number}", tuple(" ".join([f"word{number}"] * length) for _ in range(turns)), "train")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=30), st.integers(0, 30), st.randoms())
def test_chat_prompts_are_openings_that_end_with_the_user(shapes: list[tuple[int, int]], count: int, chance) -> None:  # type: ignore[no-untyped-def]
    talks = [conversation(number, turns, length) for number, (turns, length) in enumerate(shapes)]
    made = chat_prompts(talks, count)
    assert len(made) <= count and len({prompt.topic for prompt in made}) == len(made)
    turns = {talk.conversation_id: talk.turns for talk in talks}
    for prompt in made:
        assert [message["role"] for message in prompt.messages] in (["user"], ["user", "assistant", "user"])
        assert tuple(message["content"] for message in prompt.messages) == turns[prompt.topic][: len(prompt.messages)]
        assert all(2 <= len(message["content"].split()) <= 25 for message in prompt.messages)
    chance.shuffle(talks)
    assert chat_prompts(talks, count) == made


def test_fitting_conversations_give_as_many_chat_prompts_as_asked_for() -> None:
    made = chat_prompts([conversation(number) for number in range(300)], 200)
    assert len(made) == 200 and 0.4 < sum(len(prompt.messages) == 1 for prompt in made) / 200 < 0.8


# Ghost Attention


def test_words_of_ghost_attention_tests_are_absent_from_its_training() -> None:
    spoken = {split: {one.word for one in ghost_attention.instructions(split, 400, seed=0, **SHARES)} for split in SPLITS}
    assert all(spoken.values())
    assert not spoken["train"] & spoken["test"] and not spoken["train"] & spoken["validation"]


def test_an_instruction_is_obeyed_by_answers_that_end_with_its_word_and_by_no_others() -> None:
    for instruction in ghost_attention.instructions("train", 40, seed=0, **SHARES):
        word = instruction.word
        assert word in instruction.text and word in instruction.terse and len(instruction.terse) < len(instruction.text)
        for good in (f"I like it, {word}.", f"{word.upper()}!", f"Yes {word} "):
            assert ghost_attention.obeys(instruction, good)
        for bad in ("", f"{word}, I like it.", "I like it.", f"I like it {word}s.", f"not{word}"):
            assert not ghost_attention.obeys(instruction, bad)


def test_messages_after_an_instruction_are_as_many_as_asked_and_repeat_by_seed() -> None:
    made = ghost_attention.user_messages("test", 7, 5, seed=4, **SHARES)
    assert [len(messages) for messages in made] == [5] * 7
    assert made == ghost_attention.user_messages("test", 7, 5, seed=4, **SHARES)
    assert made != ghost_attention.user_messages("test", 7, 5, seed=5, **SHARES)
