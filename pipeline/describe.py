"""Stage describe: instance -> words that a text-only repaint may use.

A repaint must lose the identity and keep the meaning, so the words tell what stands there and
nothing of its looks: colours, patterns and materials are taken out of what a captioner says.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from pydantic import Field

from focusdpo.data_schemas.candidates import Described, Instance, Sampled
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.parts import Captioner, Image, Mask
from focusdpo.pipeline.stage import ImageReader, StageOutput, chunks, read_mask

VERSION = 1

log = logging.getLogger(__name__)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


COLOURS = _set(
    """amber aqua azure beige black blond blonde blue bronze brown brunette burgundy caramel
    charcoal chestnut colored colorful colour color coloured colourful copper coral cream creamy
    crimson cyan dark emerald fuchsia ginger gold golden gray green grey indigo ivory khaki
    lavender light lilac lime magenta maroon mauve mint monochrome mustard navy ochre olive orange
    pale peach pink purple red reddish rose ruby rust sand sapphire scarlet sepia silver tan teal
    turquoise violet white yellow yellowish greenish bluish brownish greyish grayish pinkish
    bright vivid pastel multicolored multicoloured two-tone"""
)
PATTERNS = _set(
    """argyle banded blotchy brindle brindled calico camouflage checked checkered chequered
    dappled dots dotted dot floral flecked freckled gradient herringbone houndstooth marbled
    mottled paisley patched patches patchy patterned pattern piebald pinstriped plaid plain polka
    printed speckled speckles spots spotted spotty streaked striped stripes stripe stripy tabby
    tartan tortoiseshell zigzag"""
)
MATERIALS = _set(
    """brass bamboo ceramic clay cloth concrete cotton crystal denim fabric felt fleece fluffy
    furry fuzzy fur glass glossy glittery hairy knitted lacquered leather linen marble matte metal
    metallic nylon paper plastic plush polished porcelain rubber satin shaggy shiny silk smooth
    steel stone suede textured transparent translucent velvet vinyl wicker wood wooden wool
    woolen woollen woven"""
)
APPEARANCE = COLOURS | PATTERNS | MATERIALS

_JOINTS = _set("and or ,")
_LEADING = _set("a an the at beside by from in its made near of on over to under wearing with")
_GAP = ""
"""Stands where a word was taken out."""
_WORD = re.compile(r"[a-z0-9'-]+|,")


class DescribeConfig(StrictModel):
    """How words are taken from a captioner."""

    max_words: int = Field(default=12, ge=1, description="Longest caption; a longer one is cut.")
    batch: int = Field(default=32, ge=1, description="Most instances in one call of the captioner.")


class ClassNameCaptioner:
    """The default: an instance is called by its class name."""

    fingerprint = "class-name-1"

    def caption(
        self, images: Sequence[Image], masks: Sequence[Mask], class_names: Sequence[str]
    ) -> list[str]:
        """The class names themselves."""
        return list(class_names)


def describe(
    sampled: Sequence[Sampled],
    instances: Sequence[Instance],
    images: ImageReader,
    captioner: Captioner,
    config: DescribeConfig,
) -> StageOutput[Described]:
    """A caption for every instance that was found, in the order given; no new pictures."""
    image_of = {candidate.id: candidate.image for candidate in sampled}
    seen = [i for i in instances if i.mask is not None]
    records = []
    for part in chunks(seen, config.batch):
        answers = captioner.caption(
            [images(image_of[i.candidate_id]) for i in part],
            [read_mask(images, i.mask) for i in part if i.mask is not None],
            [i.class_name for i in part],
        )
        for instance, words in zip(part, answers, strict=True):
            caption = without_appearance(words, instance.class_name, config.max_words)
            records.append(Described(instance=instance, caption=caption))
    log.info("describe: %d instances", len(records))
    return StageOutput(records)


def without_appearance(caption: str, class_name: str, max_words: int = 12) -> str:
    """The caption as a bare noun phrase: no article in front, no word of colour, pattern or
    material, at most `max_words` words and two of them before the class name.

    The class name itself is kept whatever its words ("orange", "polka dot tie"); a caption that
    does not hold it, or holds nothing else, becomes the class name.
    """
    name = class_name.lower()
    before, is_named, after = _split_at(caption.lower(), name)
    if not is_named:
        return class_name
    lead: list[str] = []
    for word in _without_looks(before):
        lead = [] if word in _LEADING | _JOINTS else [*lead, word]
    words = [word for word in lead if word][-2:] + [class_name]
    words += _joined(_without_looks(after))
    return " ".join(_trimmed(words[:max_words], class_name)).replace(" ,", ",")


def _split_at(text: str, name: str) -> tuple[str, bool, str]:
    """Text before and after the first whole-word occurrence of `name`."""
    hit = re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", text)
    return (text[: hit.start()], True, text[hit.end() :]) if hit else (text, False, "")


def _without_looks(text: str) -> list[str]:
    """The words, with `_GAP` for those that tell looks; a hyphenated one goes if a part does."""
    return [
        _GAP if word in APPEARANCE or APPEARANCE.intersection(word.split("-")) else word
        for word in _WORD.findall(text)
    ]


def _joined(words: Sequence[str]) -> list[str]:
    """Closes the gaps: "with a _ and _ hat" is "with a hat", "in _ with a hat" is "with a hat"."""
    kept: list[str] = []
    gap = False
    for word in words:
        dangling = bool(kept) and kept[-1] in _LEADING | _JOINTS
        if word == _GAP or (word in _JOINTS and (dangling or gap)):
            gap = True
            continue
        if word in _LEADING and gap:
            while kept and kept[-1] in _LEADING | _JOINTS:
                kept.pop()
        kept.append(word)
        gap = False
    return kept


def _trimmed(words: Sequence[str], class_name: str) -> list[str]:
    """Without words at the end that lead to nothing; the class name alone if it was cut."""
    kept = list(words)
    while kept and kept[-1] in _LEADING | _JOINTS:
        kept.pop()
    return kept if class_name in kept else [class_name]
