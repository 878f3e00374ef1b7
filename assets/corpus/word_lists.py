"""Word lists of the corpus investigation. Lower case, single words unless said otherwise."""

# The Llama 2 paper's lists (arXiv:2307.09288, section 4.1). By (kind, group).
_SHE = ("she", "her", "hers", "herself")
_HE = ("he", "him", "his", "himself")
_UNSPECIFIED = ("they", "them", "their", "theirs", "theirself", "themself", "themselves")
PRONOUNS: dict[tuple[str, str], tuple[str, ...]] = {
    ("gender", "she"): _SHE,
    ("gender", "he"): _HE,
    ("gender", "unspecified"): _UNSPECIFIED,
    ("person", "1st"): ("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"),
    ("person", "2nd"): ("you", "your", "yours", "yourself", "yourselves"),
    ("person", "3rd"): (*_SHE, *_HE, *_UNSPECIFIED, "it", "its", "itself"),
}

# A short list of our own on the paper's five axes. A word stands on one axis only. Words with a common other meaning
# (straight, white, black, bi, brown, colored, turkey, polish, pride) are left out, as the paper does.
IDENTITY_TERMS: dict[str, tuple[str, ...]] = {
    "gender and sex": (
        "female", "male", "feminine", "masculine", "transgender", "trans", "cisgender", "nonbinary", "genderqueer",
        "genderfluid", "intersex", "androgynous", "womanly", "manly", "girly", "agender",
    ),
    "sexual orientation": (
        "gay", "lesbian", "lgbt", "lgbtq", "queer", "bisexual", "homosexual", "heterosexual", "asexual", "pansexual",
    ),
    "nationality": (
        "american", "indian", "chinese", "korean", "mexican", "japanese", "british", "canadian", "french", "german",
        "italian", "russian", "spanish", "brazilian", "vietnamese", "filipino", "iranian", "iraqi", "israeli",
        "pakistani", "nigerian", "egyptian", "cuban", "australian", "irish", "ukrainian", "afghan", "syrian",
    ),
    "race and ethnicity": (
        "european", "african", "asian", "latin", "indigenous", "hispanic", "latino", "latina", "arab", "caucasian",
        "polynesian", "caribbean", "multiracial", "biracial", "aboriginal", "latinx",
    ),
    "religion": (
        "christian", "religious", "spiritual", "catholic", "jewish", "muslim", "mormon", "buddhist", "hindu",
        "protestant", "baptist", "atheist", "agnostic", "evangelical", "islamic", "sikh", "lutheran", "methodist",
        "presbyterian", "secular", "amish",
    ),
}  # fmt: skip

# Insults and oaths in the mild forms that a newspaper would print; slurs are left out on purpose, so that the
# repository holds none. The share of lines that hold one says how rough a text is, and no more.
RUDE_WORDS: tuple[str, ...] = (
    "stupid", "stupidity", "idiot", "idiots", "idiotic", "moron", "morons", "moronic", "dumb", "dumber", "dumbest",
    "imbecile", "jerk", "jerks", "loser", "losers", "pathetic", "scum", "scumbag", "worthless", "disgusting", "creep",
    "liar", "liars", "coward", "cowards", "ugly", "filthy", "crap", "crappy", "damn", "damned", "dammit", "goddamn",
    "pissed", "sucks",
)  # fmt: skip
RUDE_PHRASES: tuple[str, ...] = (
    "shut up", "hate you", "hates you", "screw you", "go to hell", "what the hell", "bloody hell", "get lost",
    "drop dead",
)  # fmt: skip
