"""The vocabulary of composed scenes: forty things by four names each, colours, numbers, places and relations.

Things were chosen by eye: told apart at a dozen pixels in the art of both vendors. The first name is for original
captions, the next two for rewrites, the last is held out: no caption that one trains on has it. Words are new to a
text tower that is trained from nothing, so a held-out name is made of words of *both* rewrites, never of the original:
who learnt from rewrites can understand it, who learnt from originals alone cannot. No word belongs to two things, and
none names a colour, a size or a place. Kinds of thing are mixed, so that the first few are as varied as all.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class Noun(NamedTuple):
    """A thing: code point of its emoji, and its names."""

    concept: str
    original: str
    rewrites: tuple[str, str]
    heldout: str


_NOUNS = (
    Noun("1f436", "dog", ("hound", "canine companion"), "canine hound"),
    Noun("1f437", "pig", ("hog", "curly-tailed swine"), "curly-tailed hog"),
    Noun("1f981", "lion", ("maned beast", "savanna predator"), "maned predator"),
    Noun("1f430", "rabbit", ("bunny", "long-eared hare"), "long-eared bunny"),
    Noun("1f414", "chicken", ("hen", "farmyard fowl"), "farmyard hen"),
    Noun("1f418", "elephant", ("tusker", "trunked mammal"), "trunked tusker"),
    Noun("1f420", "fish", ("finned creature", "aquarium dweller"), "finned dweller"),
    Noun("1f98b", "butterfly", ("winged insect", "fluttering monarch"), "fluttering insect"),
    Noun("1f34c", "banana", ("plantain", "peelable fruit"), "peelable plantain"),
    Noun("1f34d", "pineapple", ("ananas", "tropical bromeliad"), "tropical ananas"),
    Noun("1f955", "carrot", ("crunchy root", "taproot vegetable"), "crunchy vegetable"),
    Noun("1f354", "burger", ("patty sandwich", "fast-food bun"), "patty bun"),
    Noun("1f335", "cactus", ("succulent", "thorny plant"), "thorny succulent"),
    Noun("1f697", "car", ("automobile", "passenger sedan"), "passenger automobile"),
    Noun("1f6b2", "bicycle", ("bike", "pedal cycle"), "pedal bike"),
    Noun("26f5", "sailboat", ("yacht", "wind-driven vessel"), "wind-driven yacht"),
    Noun("1f941", "drum", ("snare", "percussion tambour"), "percussion snare"),
    Noun("1f511", "key", ("door opener", "lock turner"), "lock opener"),
    Noun("23f0", "clock", ("timepiece", "wake-up alarm"), "wake-up timepiece"),
    Noun("1f451", "crown", ("diadem", "royal tiara"), "royal diadem"),
    Noun("1f431", "cat", ("kitty", "feline prowler"), "feline kitty"),
    Noun("1f438", "frog", ("toad", "hopping amphibian"), "hopping toad"),
    Noun("1f98a", "fox", ("vixen", "woodland trickster"), "woodland vixen"),
    Noun("1f435", "monkey", ("simian", "jungle primate"), "jungle simian"),
    Noun("1f427", "penguin", ("flightless bird", "antarctic swimmer"), "antarctic bird"),
    Noun("1f422", "turtle", ("tortoise", "shelled reptile"), "shelled tortoise"),
    Noun("1f433", "whale", ("cetacean", "ocean leviathan"), "ocean cetacean"),
    Noun("1f980", "crab", ("crustacean", "clawed crawler"), "clawed crustacean"),
    Noun("1f34e", "apple", ("pippin", "orchard pome"), "orchard pippin"),
    Noun("1f353", "strawberry", ("garden berry", "seeded delicacy"), "seeded berry"),
    Noun("1f355", "pizza", ("cheesy slice", "neapolitan flatbread"), "cheesy flatbread"),
    Noun("1f369", "doughnut", ("glazed ring", "frosted pastry"), "frosted ring"),
    Noun("1f344", "mushroom", ("fungus", "forest champignon"), "forest fungus"),
    Noun("1f68c", "bus", ("coach", "public omnibus"), "public coach"),
    Noun("1f680", "rocket", ("spaceship", "orbital launcher"), "orbital spaceship"),
    Noun("1f3b8", "guitar", ("stringed instrument", "acoustic strummer"), "acoustic instrument"),
    Noun("2602", "umbrella", ("parasol", "rain shelter"), "rain parasol"),
    Noun("1f514", "bell", ("chime", "ringing gong"), "ringing chime"),
    Noun("1f3e0", "house", ("home", "family cottage"), "family home"),
    Noun("1f388", "balloon", ("party inflatable", "floating blimp"), "floating inflatable"),
)
NOUNS: Mapping[str, Noun] = MappingProxyType({noun.original: noun for noun in _NOUNS})

COLORS: Mapping[str, tuple[int, int, int]] = MappingProxyType({
    "red": (205, 25, 35), "blue": (30, 90, 220), "yellow": (255, 222, 40), "green": (40, 150, 60),
    "purple": (125, 40, 160), "orange": (255, 135, 0), "pink": (255, 150, 200), "brown": (115, 70, 35),
})  # fmt: skip
# no tile has one of these
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"white": (255, 255, 255), "grey": (150, 150, 150), "black": (10, 10, 10)}
)
SIZES = ("large", "small")
OPPOSITE: Mapping[str, str] = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)
RELATION_REWRITES: Mapping[str, tuple[str, str]] = MappingProxyType({
    "left of": ("to the left of", "on the left side of"), "right of": ("to the right of", "on the right side of"),
    "above": ("higher than", "over"), "below": ("lower than", "under"),
})  # fmt: skip
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_UNCHANGED = ("fish", "swine")


def article(phrase: str) -> str:
    """The phrase after `a` or `an`; no name of ours begins with a vowel letter that is no vowel."""
    return f"{'an' if phrase[0] in 'aeio' or phrase.startswith('um') else 'a'} {phrase}"


def plural(phrase: str) -> str:
    """Several of a thing; the last word takes the ending."""
    if phrase.endswith(_UNCHANGED):
        return phrase
    if phrase.endswith("y") and phrase[-2] not in "aeou":
        return phrase[:-1] + "ies"
    return phrase + ("es" if phrase.endswith(("s", "x", "sh", "ch")) else "s")


def number(count: int) -> str:
    """A number up to eight in words."""
    return _NUMBERS[count]


def listing(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
