"""The vocabulary of the template-made prompts: common English words, each belonging to one split."""

from resources.errors import TampuError
from resources.splits import Split, split_of

TOPICS = tuple(
    """
    home music place week college summer night game kids phone books water country food space movies exam
    homework history science math business sleep travel coffee weather winter snow rain football baseball
    basketball soccer tennis pizza ice chocolate dinner lunch breakfast cheese bread butter chicken fish rice
    milk fruit sugar candy cookies cake pasta soup bacon honey lemon apples bananas oranges grapes berries
    carrots potatoes tomatoes onions beans corn nuts salt pepper tea juice soda dogs cats birds horses sheep
    cows pigs rabbits bears lions tigers monkeys elephants dolphins whales sharks snakes spiders bees ants
    trees flowers grass leaves gardens parks forests rivers lakes oceans beaches islands mountains deserts
    canyons caves clouds stars planets moon sun earth wind storms thunder fire light shadows colors paint
    pictures photos films cameras videos songs guitars pianos drums violins bands concerts dance jazz opera
    theater museums libraries schools classes teachers students doctors nurses artists writers singers actors
    drivers farmers cooks pilots sailors soldiers kings queens heroes robots computers laptops phones screens
    keyboards games puzzles chess cards toys dolls kites balloons bikes cars trucks buses trains planes boats
    ships rockets roads bridges cities towns villages houses kitchens bedrooms windows doors walls floors
    tables chairs beds lamps clocks mirrors pillows blankets clothes shoes hats coats gloves scarves socks
    shirts dresses pants belts rings watches bags boxes bottles cups plates spoons forks paper pens pencils
    letters stories poems novels magazines newspapers maps stamps coins gifts parties birthdays weddings
    holidays vacations camping hiking fishing swimming running skiing surfing skating climbing yoga sports
    languages spanish english french chinese biology chemistry physics art culture nature friends family
    brothers sisters parents babies neighbors dreams jokes secrets memories plans rules habits skills hobbies
    jobs projects meetings weekends mornings evenings spring autumn october december monday friday
    """.split()
)
NAMES = tuple(
    """
    Adam Alan Anna Ben Carl Clara Dan David Ella Emma Eric Eva Frank Fred George Grace Hannah Harry Helen Henry
    Ian Jack James Jane Jason Jenny John Julia Karen Kate Kevin Laura Leo Linda Lisa Luke Lucy Maria Mark Mary
    Max Mike Nick Nina Oscar Paul Peter Rachel Robert Rosa Ryan Sam Sarah Simon Sophie Steve Susan Tom Tina Victor
    """.split()
)
ENDINGS = tuple(
    """
    friend please thanks cheers okay buddy always forever today tonight tomorrow now indeed really truly maybe
    surely wow yes hello goodbye smile peace love hope happy good great sweet cool nice fun amen gosh dude honest
    captain boss doctor professor sunshine banana purple magic music pizza dragon unicorn penguin
    """.split()
)


def in_split(words: tuple[str, ...], split: Split, *, validation: float, test: float) -> list[str]:
    """The words of one split, in their listed order; each word is in exactly one split whatever list it is in.

    TampuError if a share is so small that a split has none.
    """
    found = [word for word in words if split_of(f"topic:{word.lower()}", validation=validation, test=test) == split]
    if not found:
        raise TampuError(f"no word of {words[0]}, {words[1]}, … belongs to {split} (validation={validation}, test={test}): raise its share")
    return found
