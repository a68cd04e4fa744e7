"""A small folder in the DreamBooth dataset's layout, and a suite of parts that truly compute on it.

The public names and prompts stand over toy pictures: discs and squares told apart by colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import toy_world
from PIL import Image

CLASSES = {
    "backpack": "backpack", "backpack_dog": "backpack", "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl", "can": "can", "candle": "candle", "cat": "cat", "cat2": "cat",
    "clock": "clock", "colorful_sneaker": "sneaker", "dog": "dog", "dog2": "dog", "dog3": "dog",
    "dog5": "dog", "dog6": "dog", "dog7": "dog", "dog8": "dog", "duck_toy": "toy",
    "fancy_boot": "boot", "grey_sloth_plushie": "stuffed animal", "monster_toy": "toy",
    "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy",
    "red_cartoon": "cartoon", "robot_toy": "toy", "shiny_sneaker": "sneaker",
    "teapot": "teapot", "vase": "vase", "wolf_plushie": "stuffed animal",
}  # fmt: skip
SETTINGS = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street",
    "on top of pink fabric", "on top of a wooden floor", "with a city in the background",
    "with a mountain in the background", "with a blue house in the background",
    "on top of a purple rug in a forest",
)  # fmt: skip
PLACES = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water",
    "floating in an ocean of milk", "on top of green grass with sunflowers around it",
    "on top of a mirror", "on top of the sidewalk in a crowded street",
    "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
CLOTHES = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf",
    "wearing a black top hat and a monocle", "in a chef outfit", "in a firefighter outfit",
    "in a police outfit", "wearing pink glasses", "wearing a yellow shirt",
    "in a purple wizard outfit",
)  # fmt: skip
LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")

TOY_CLASSES = {name: toy_world.WORDS[at % 3 == 0] for at, name in enumerate(CLASSES)}
HUES = {name: at * 12.0 for at, name in enumerate(CLASSES)}


def prompts_text(classes: dict[str, str]) -> str:
    """prompts_and_classes.txt as the public dataset writes it."""

    def listed(tails: tuple[str, ...]) -> str:
        templates = [f"a {{0}} {{1}} {tail}" for tail in tails]
        templates += [f"a {look} {{0}} {{1}}" for look in LOOKS]
        lines = ",\n".join(f"'{one}'.format(unique_token, class_token)" for one in templates)
        return f"prompt_list = [\n{lines}\n]\n"

    rows = "\n".join(f"{name},{word}" for name, word in classes.items())
    return (
        f"Classes\n\nsubject_name,class\n{rows}\n\nPrompts\n\nObject Prompts\n\n"
        f"{listed(SETTINGS + PLACES)}\nLive Subject Prompts\n\n{listed(SETTINGS + CLOTHES)}"
    )


def photograph(name: str, number: int) -> np.ndarray:
    """One subject at another place in every photograph; every second photograph is wider."""
    thing = (TOY_CLASSES[name], HUES[name], number % 3)
    image = toy_world.picture([thing], seed=number)
    if number % 2:
        image = np.pad(image, ((0, 0), (8, 0), (0, 0)), constant_values=110)
    return image


def write_photo_folder(
    folder: Path, names: tuple[str, ...] = tuple(CLASSES), classes: dict[str, str] = TOY_CLASSES
) -> Path:
    """All 30 subjects are listed, those of `names` photographed six times."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts_and_classes.txt").write_text(prompts_text(classes))
    for name in names:
        (folder / name).mkdir()
        for number in range(6):
            image = Image.fromarray(photograph(name, number))
            image.save(folder / name / f"{number:02}.jpg", quality=100, subsampling=0)
    return folder


class Generator(toy_world.Generator):
    """Reads prompts with commas; counts the pictures it paints."""

    def one(self, prompt, references, seed):
        return super().one(prompt.replace(",", " "), references, seed)


class Identity(toy_world.Identity):
    def embed_whole(self, images):
        return self.embed(images, [np.ones(image.shape[:2], bool) for image in images])


BASE, ADAPTED = Generator(faults=0.7), Generator(faults=0.0)
PARTS = {
    "segmenter": toy_world.Segmenter(),
    "identity": Identity(),
    "clip": toy_world.Clip(),
}
FINGERPRINTS = {role: "toy" for role in (*PARTS, "generator")}


def vocabulary() -> tuple[tuple[str, ...], frozenset[str]]:
    return ("grey",), frozenset(toy_world.WORDS)


def fingerprint(role: str, *, adapter: str | None = None) -> str:
    return FINGERPRINTS[role]


def build(role: str, *, adapter: str | None = None) -> Any:
    if role == "generator":
        return ADAPTED if adapter else BASE
    return PARTS[role]
