"""Stored subjects as folders of pictures again, as `folders` reads them: each reference cut out,
its mask as its alpha."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from focusdpo.pipeline.subjects.folders import CARD
from focusdpo.store.artefacts import Store


def cut_outs(store: Store, pictures: Iterable[tuple[str, str]]) -> list[Image.Image]:
    """References as RGBA pictures, from the keys of their images and masks."""
    cutouts = []
    for image, mask in pictures:
        alpha = store.mask(mask).astype(np.uint8) * np.uint8(255)
        cutouts.append(Image.fromarray(np.dstack([store.image(image), alpha]), "RGBA"))
    return cutouts


def write_folder(
    store: Store,
    pictures: Iterable[tuple[str, str]],
    folder: Path,
    *,
    class_name: str,
    licence: str,
) -> None:
    """A subject's pictures and card into `folder`, which is made."""
    folder.mkdir(parents=True)
    for at, picture in enumerate(cut_outs(store, pictures)):
        picture.save(folder / f"{at:02d}.png")
    card = {"class_name": class_name, "licence": licence}
    text = yaml.safe_dump({key: value for key, value in card.items() if value})
    (folder / CARD).write_text(text, encoding="utf-8")
