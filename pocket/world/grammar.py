"""Prompts of the pocket world in right English, and what is read out of any prompt.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from focusdpo.pocket.classes import class_names

NUMBERS = {2: "two", 3: "three", 4: "four"}
TEMPLATES = (
    "{subjects} on {background}",
    "a picture of {subjects} on {background}",
    "on {background}: {subjects}",
    "{subjects} together on {background}",
    "{background} with {subjects} on it",
)
"""Kinds of prompt; the first is the world's plain caption. `together` is for several."""
_IRREGULAR = {"fish": "fish", "mushroom": "mushrooms"}


def article(word: str) -> str:
    """The word with `a` or `an`."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(word: str) -> str:
    """Several of what the word names."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def plurals() -> dict[str, str]:
    """Plural -> class word, where they differ."""
    return {plural(word): word for word in class_names() if plural(word) != word}


def list_subjects(classes: Sequence[str]) -> str:
    """`a cat`, `two cats and an airplane`: each class once, in the order of first mention."""
    counts = Counter(classes)
    parts = [
        article(word) if count == 1 else f"{NUMBERS[count]} {plural(word)}"
        for word, count in counts.items()
    ]
    return ", ".join(parts[:-1]) + (" and " if parts[:-1] else "") + parts[-1]


def prompt_for(classes: Sequence[str], background: str, template: int = 0) -> str:
    """A caption of a scene with 1 to 4 subjects; `template` is a number into TEMPLATES."""
    return TEMPLATES[template].format(subjects=list_subjects(classes), background=background)


def draw_prompt(classes: Sequence[str], background: str, rng: np.random.Generator) -> str:
    """A caption of any kind, its words in any order."""
    words = [classes[i] for i in rng.permutation(len(classes))]
    kinds = [i for i, text in enumerate(TEMPLATES) if len(words) > 1 or "together" not in text]
    # Half are plain captions, which is what most of the project writes.
    kind = 0 if rng.random() < 0.5 else kinds[int(rng.integers(len(kinds)))]
    return prompt_for(words, background, kind)
