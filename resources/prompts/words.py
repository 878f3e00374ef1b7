"""The vocabulary of the template-made prompts: common English words, each in one split of every instruction family."""

from resources.errors import TampuError
from resources.splits import Split, split_of

# Words that a vocabulary of 2,048 pieces, learned on small talk, holds whole: a tiny model copies one piece far sooner than three.
TOPICS = tuple(
    """
    home music school food water books movies games computers science history math business travel sleep summer wind ice tea butter
    dinner light art classes students friends family parents jobs college church money language technology research video health
    children kids girls people homework reading studying flying learning work life space law country campus stress luck morning night
    words story project room future design rock camp chat team power time week America Utah conversations cream
    """.split()
)
ENDINGS = tuple("friend please thanks always today tonight maybe hello love hope happy great sweet nice fun dude again soon okay cool".split())


def in_split(words: tuple[str, ...], scope: str, split: Split, *, validation: float, test: float) -> list[str]:
    """The words that `scope` (an instruction family) uses in one split, in their listed order.

    A word is drawn anew for every scope: a test prompt asks for something that no training prompt asked for with that word, but the
    model has met the word elsewhere. A tiny model can not copy a word that it never had to write.
    TampuError if the shares leave a split without any word.
    """
    found = [word for word in words if split_of(f"topic:{scope}/{word.lower()}", validation=validation, test=test) == split]
    if not found:
        shares = f"validation={validation}, test={test}"
        raise TampuError(f"{scope}: no word of {words[0]}, {words[1]}, … belongs to {split} ({shares}): raise its share")
    return found
