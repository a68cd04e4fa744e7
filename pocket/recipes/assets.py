"""Makes the packaged emoji subset from a folder of Microsoft's Fluent Emoji 3D renders.

    python -m focusdpo.pocket.recipes.assets FOLDER

FOLDER holds `subjects.csv` (file, class_name, ...) and the 256 px RGBA renders. Written are 96 px
lossy WebP files with alpha and `classes.json`: word -> file and split.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path

from PIL import Image

logger = logging.getLogger(__name__)

SIZE = 96
ASSETS = Path(__file__).parents[1] / "assets"

# Word in prompts -> class name in the source. Compact shapes with distinct silhouettes: colour is
# taken away by the world's tint, so that the outline alone has to tell the class.
TRAIN = {
    "teddy bear": "teddy bear",
    "mushroom": "mushroom",
    "rocket": "rocket",
    "guitar": "guitar",
    "teapot": "teapot",
    "duck": "duck",
    "elephant": "elephant",
    "cactus": "cactus",
    "umbrella": "umbrella",
    "car": "automobile",
    "sailboat": "sailboat",
    "fish": "tropical fish",
    "butterfly": "butterfly",
    "turtle": "turtle",
    "snail": "snail",
    "house": "house",
    "key": "old key",
    "backpack": "backpack",
    "crown": "crown",
    "bell": "bell",
    "camera": "camera",
    "pear": "pear",
    "pineapple": "pineapple",
    "octopus": "octopus",
    "penguin": "penguin",
    "t-shirt": "t-shirt",
    "shoe": "running shoe",
    "trophy": "trophy",
    "top hat": "top hat",
    "airplane": "airplane",
    "cat": "cat face",
    "star": "glowing star",
}
VAL = {
    "rabbit": "rabbit face",
    "anchor": "anchor",
    "strawberry": "strawberry",
    "chair": "chair",
    "bus": "bus",
    "dress": "dress",
    "hourglass": "hourglass done",
    "drum": "drum",
}
HELD_OUT = {
    "owl": "owl",
    "whale": "whale",
    "snowman": "snowman",
    "cupcake": "cupcake",
    "helicopter": "helicopter",
    "hammer": "hammer",
    "heart": "heart suit",
    "dinosaur": "t-rex",
}


def main(source: Path) -> None:
    """Writes assets and classes.json from the folder `source`."""
    with (source / "subjects.csv").open(newline="") as handle:
        files = {row["class_name"]: row["file"] for row in csv.DictReader(handle)}
    classes: dict[str, dict[str, str]] = {}
    for split, words in (("train", TRAIN), ("val", VAL), ("held_out", HELD_OUT)):
        for word, class_name in words.items():
            name = word.replace(" ", "_") + ".webp"
            with Image.open(source / files[class_name]) as image:
                small = image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            small.save(ASSETS / name, quality=85, method=6, exact=False)
            classes[word] = {"file": name, "split": split, "source": class_name}
    (ASSETS / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")
    logger.info("wrote %d classes to %s", len(classes), ASSETS)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(Path(sys.argv[1]))
