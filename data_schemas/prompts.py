"""Captions in right English: who stands where. Importing this module loads nothing.

Class words are anybody's, so the rules are English's common ones; a word's last part takes the
plural, of `a pair of shoes` the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MOST_SUBJECTS = 3
"""Of a scene that is composed or asked for."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
_IRREGULAR = {
    **{word: word for word in ("deer", "fish", "moose", "sheep", "swine", "aircraft")},
    **{"child": "children", "person": "people", "ox": "oxen", "mouse": "mice", "goose": "geese"},
    **{"foot": "feet", "tooth": "teeth", "die": "dice", "human": "humans"},
    **{f"{stem}f": f"{stem}ves" for stem in ("cal", "el", "hal", "lea", "loa", "scar", "shel")},
    **{"wolf": "wolves", "thief": "thieves", "knife": "knives", "wife": "wives", "life": "lives"},
    **{word: f"{word}es" for word in ("hero", "potato", "tomato", "lens")},
}
_YOU = r"uni(?![dmn])|u[krst][aeiou]|ufo|u\b|eu|ewe|on[ec]e?\b"
"""Begins with a vowel and is spoken with a consonant: unit, utensil, U-shaped, ewe, one, once."""
_VOWEL = re.compile(rf"(?!{_YOU})[aeiou]|hour|honest|heir", re.IGNORECASE)
_SPELT = re.compile(r"[AEFHILMNORSX](?![a-z])")
"""Letters that are said with a vowel: an X-ray, an SUV."""
_SEVERAL = re.compile(r"[^aiosu]s$|(?<=glass)es$|shoes$")
"""Words that are plural as they stand: scissors, headphones."""


def article(word: str) -> str:
    """The word with `a` or `an`; a word for several, with none."""
    if _is_plural(word):
        return word
    return f"{'an' if _VOWEL.match(word) or _SPELT.match(word) else 'a'} {word}"


def plural(word: str) -> str:
    """Several of what the word names."""
    head, link, tail = _parted(word)
    before, last = head[: head.rfind(" ") + 1], head[head.rfind(" ") + 1 :]
    return f"{before}{_plural_of(last)}{link}{tail}"


def list_subjects(classes: Sequence[str]) -> str:
    """`a cat`, `two cats and an airplane`: each class once, in the order of first mention."""
    parts = [
        article(word) if count == 1 else f"{NUMBERS[count]} {plural(word)}"
        for word, count in Counter(classes).items()
    ]
    return ", ".join(parts[:-1]) + (" and " if parts[:-1] else "") + parts[-1]


def caption(classes: Sequence[str], background: str) -> str:
    """Of a scene with 1 to 4 subjects."""
    return f"{list_subjects(classes)} on {background}"


def _parted(word: str) -> tuple[str, str, str]:
    """What takes the plural, and what follows it: `pair`, ` of `, `shoes`."""
    found = re.search(r" (?:of|in|with|on) ", word)
    return (word[: found.start()], found[0], word[found.end() :]) if found else (word, "", "")


def _is_plural(word: str) -> bool:
    head, _, _ = _parted(word)
    return bool(_SEVERAL.search(head)) and head.rpartition(" ")[2] not in _IRREGULAR


def _plural_of(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if _SEVERAL.search(noun):
        return noun
    if noun.endswith("man"):
        return noun[:-2] + "en"
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")
