"""Prompts of the pocket world: kinds of captions, and the plurals that are read out of any.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from focusdpo.data_schemas.prompts import list_subjects, plural
from focusdpo.pocket.classes import class_names

TEMPLATES = (
    "{subjects} on {background}",
    "a picture of {subjects} on {background}",
    "on {background}: {subjects}",
    "{subjects} together on {background}",
    "{background} with {subjects} on it",
)
"""Kinds of prompt; the first is the world's plain caption. `together` is for several."""


def plurals() -> dict[str, str]:
    """Plural -> class word, where they differ."""
    return {plural(word): word for word in class_names() if plural(word) != word}


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
