"""The vocabulary of the template-made prompts: common English words, each in one split of every instruction family."""

from resources.errors import TampuError
from resources.splits import Split, split_of

TOPICS = tuple(
    """
    home music school food water books movies games phones computers science history math business travel sleep
    summer winter snow rain wind weather ice tea coffee butter cheese cookies cake pizza chicken fish rice milk
    fruit sugar dinner lunch breakfast dogs cats birds horses trees flowers parks lakes oceans islands mountains
    stars planets light fire colors pictures songs art dance theater classes students teachers doctors writers
    singers kings robots cars trucks trains planes boats roads cities houses kitchens windows clocks clothes
    shoes hats rings friends family parents babies dreams jokes plans jobs sports soccer tennis football running
    camping fishing hiking
    """.split()
)
NAMES = tuple("Adam Anna Ben Dan Emma Eva Jack James Jane John Kate Mark Mary Paul Sam Tom".split())
ENDINGS = tuple("friend please thanks always today tonight maybe hello love hope happy great sweet nice fun dude".split())


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
