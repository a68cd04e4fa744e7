"""A toy world whose parts truly compute: flat discs and squares, told apart by colour.

Class = shape, identity = colour. The generator paints what prompt and references ask for and now
and then, by seed, forgets a subject or paints one twice; the segmenter, the encoders and the judge
measure pixels.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from focusdpo.data_schemas.prompts import NUMBERS
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.data_schemas.subjects import Reference, Subject
from focusdpo.pipeline.parts import Detection, ReferenceImage, Seen

SIDE = 48
WORDS = ("disc", "square")
CENTRES = (9, 24, 39)
COUNTS = {word: count for count, word in NUMBERS.items()}


def shape_mask(word, y, x, radius=5):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    if word == "disc":
        return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return (np.abs(rows - y) <= radius) & (np.abs(columns - x) <= radius)


def slot_mask(word, slot):
    return shape_mask(word, 24, CENTRES[slot])


def colour_of(hue):
    return np.array([round(255 * c) for c in colorsys.hsv_to_rgb(hue / 360, 0.9, 0.9)], np.uint8)


def picture(things, seed=0):
    """`things`: (word, hue, slot 0..2), painted in order on a grey, slightly noisy ground."""
    noise = np.random.default_rng(seed).integers(100, 120, (SIDE, SIDE, 1))
    image = np.repeat(noise, 3, axis=2).astype(np.uint8)
    for word, hue, slot in things:
        image[slot_mask(word, slot)] = colour_of(hue)
    return image


def hue_map(image):
    r, g, b = np.moveaxis(image.astype(float), -1, 0)
    return np.rad2deg(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360


def mean_hue(image, mask):
    return float(hue_map(image[mask].mean(axis=0)))


def blobs(image):
    """Connected coloured regions: mask, box, and how well each word fits the shape."""
    wide = image.astype(int)
    coloured = wide.max(axis=2) - wide.min(axis=2) > 60
    # Quantised hue keeps touching things of unlike colour apart.
    hues = np.round(hue_map(image) / 30).astype(int) % 12
    found = []
    for hue in np.unique(hues[coloured]):
        labels, count = ndimage.label(coloured & (hues == hue))
        for at in range(1, count + 1):
            mask = labels == at
            if mask.sum() < 12:
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            fill = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
            square = float(np.clip((fill - 0.67) / 0.33, 0, 1))
            found.append((mask, box, {"disc": 1 - square, "square": square}))
    return sorted(found, key=lambda f: f[1])


def words_of(prompt):
    """Class words of a prompt, `two discs` twice."""
    before, words = "", []
    for token in prompt.replace(",", "").split():
        if token.removesuffix("s") in WORDS:
            words += [token.removesuffix("s")] * COUNTS.get(before, 1)
        before = token
    return words


@dataclass
class Generator:
    faults: float = 0.0
    calls: list = field(default_factory=list)
    fingerprint: str = "toy"

    def generate(self, prompts, references, seeds, *, guidance=None):
        self.calls.append(len(prompts))
        assert len({len(r) for r in references}) <= 1
        return [self.one(*item) for item in zip(prompts, references, seeds, strict=True)]

    def one(self, prompt, references, seed):
        rng = np.random.default_rng(seed)
        words = words_of(prompt)
        hues = [mean_hue(r.image, r.mask) + rng.normal(0, 10) for r in references]
        hues = hues or list(rng.uniform(0, 360, len(words)))
        slots = rng.permutation(3)[: len(words)]
        things = list(zip(words, [h % 360 for h in hues], slots, strict=True))
        if rng.random() < self.faults:
            again = [(*things[0][:2], slots[-1])] if rng.random() < 0.5 else []
            things = things[:-1] + again
        return picture(things, seed)

    def inpaint(self, images, masks, prompts, references, seeds, *, guidance=None):
        self.calls.append(len(prompts))
        assert len({len(r) for r in references}) <= 1
        items = zip(images, masks, prompts, references, seeds, strict=True)
        return [self.fill(*item) for item in items]

    def fill(self, image, mask, prompt, references, seed):
        """Each connected part of the hole gets one colour; pixels outside change a little."""
        rng = np.random.default_rng(seed)
        new = (image.astype(int) + rng.integers(-3, 4, image.shape)).clip(0, 255).astype(np.uint8)
        words = words_of(prompt)
        labels, count = ndimage.label(mask)
        for at in range(1, count + 1):
            hole, hue = labels == at, rng.uniform(0, 360)
            if references:
                hue = self.lacking(image, hole, words, references)
            new[hole] = colour_of(hue)
        return new

    def lacking(self, image, hole, words, references):
        """The hue of the request that nothing outside the hole answers."""
        wanted = [(w, mean_hue(r.image, r.mask)) for w, r in zip(words, references, strict=True)]
        for mask, _, scores in blobs(image):
            if 2 * (mask & hole).sum() < mask.sum():
                word, hue = max(scores, key=scores.get), mean_hue(image, mask)
                apart = [abs((h - hue + 180) % 360 - 180) + 360 * (w != word) for w, h in wanted]
                wanted.pop(int(np.argmin(apart)))
        return wanted[0][1]


class Segmenter:
    fingerprint = "toy"

    def segment(self, images, class_names):
        return [
            sorted(
                (
                    Detection(word, mask, box, scores.get(word, 0.0))
                    for mask, box, scores in blobs(image)
                    for word in words
                ),
                key=lambda d: -d.confidence,
            )
            for image, words in zip(images, class_names, strict=True)
        ]


class Identity:
    fingerprint = "toy"

    def embed(self, images, masks):
        pairs = zip(images, masks, strict=True)
        means = [image[mask].mean(axis=0) for image, mask in pairs]
        return np.stack([unit(np.append(mean - mean.mean(), 5.0)) for mean in means])


class Clip:
    """Meaning = how much of the picture is disc and how much is square."""

    fingerprint = "toy"

    def embed_images(self, images):
        rows = []
        for image in images:
            row = np.full(3, 0.05)
            for _, _, scores in blobs(image):
                row[:2] += scores["disc"], scores["square"]
            rows.append(unit(row))
        return np.stack(rows)

    def embed_texts(self, texts):
        return np.stack([unit(np.array([t.count("disc"), t.count("square"), 0.1])) for t in texts])


class Judge:
    fingerprint = "toy"
    class_names = WORDS

    def look(self, images):
        return [[self.see(image, *blob) for blob in blobs(image)] for image in images]

    def see(self, image, mask, box, scores):
        return Seen(
            mask=mask,
            box=box,
            confidence=0.9,
            class_scores=np.array([scores[word] for word in WORDS], np.float32),
            embedding=Identity().embed([image], [mask])[0],
            hue=mean_hue(image, mask),
        )

    def embed_references(self, images, masks):
        return Identity().embed(images, masks)

    def hue(self, images, masks):
        pairs = zip(images, masks, strict=True)
        return np.array([mean_hue(image, mask) for image, mask in pairs], np.float32)

    def pattern(self, images, masks):
        # It imports torch: not where nothing is judged.
        from focusdpo.pocket.facts import structures

        return structures(images, masks)


def unit(vector):
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass
class World:
    """A partition in memory: subjects with pictures, and a reader of all images."""

    subjects: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)

    def add_subject(self, name, word, hue, pictures=2):
        references = []
        for at in range(pictures):
            mask = shape_mask(word, 24, 24, radius=10 + 3 * at)
            image = np.full((SIDE, SIDE, 3), 255, np.uint8)
            image[mask] = colour_of(hue)
            key = f"subjects/k/{name}-ref{at}"
            self.images[f"{key}.png"] = image
            self.images[f"{key}-mask.png"] = mask.astype(np.uint8) * 255
            references.append(Reference(image=f"{key}.png", mask=f"{key}-mask.png"))
        self.subjects[name] = Subject(
            id=name, class_name=word, references=tuple(references), licence="", digest=name
        )

    def scene(self, *names, variant=0):
        words = tuple(self.subjects[name].class_name for name in names)
        return Scene(
            id=stable_id("scene", *names, variant),
            partition=stable_id(*sorted(names)),
            subject_ids=names,
            class_names=words,
            prompt=" and ".join(f"a {word}" for word in words) + " on grey",
            variant=variant,
            seed=1000 + variant,
        )

    def read(self, key):
        return self.images[key]

    def keep(self, output, prefix):
        """What a store does: from now on the new pictures can be read."""
        self.images.update({f"{prefix}/{name}": image for name, image in output.images.items()})
        return output.records

    def shown(self, name):
        return [
            ReferenceImage(self.images[r.image], self.images[r.mask] > 127)
            for r in self.subjects[name].references
        ]


def three_subjects():
    """Red disc, blue disc, green square, with two pictures each."""
    made = World()
    made.add_subject("red", "disc", 0)
    made.add_subject("blue", "disc", 240)
    made.add_subject("green", "square", 120)
    return made
