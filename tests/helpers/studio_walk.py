"""A studio that serves for real, a browser in front of it, and pictures to bring."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from browsing import chromium
from PIL import Image

SIDE = 320
COLOURS = 96


@contextmanager
def served(root: Path, *options: str) -> Iterator[str]:
    """`focusdpo studio` as a process of its own; its address."""
    command = [sys.executable, "-m", "focusdpo.flows.cli", "studio", "--root", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"http://\S+/", said)):  # what it loads comes before
            line = process.stdout.readline()
            assert line, said
            said += line
        yield found[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def browser_page(
    *, width: int = 1180, height: int = 820, dark: bool = False, complaints: list[str] | None = None
) -> Iterator[Any]:
    """A tab; what a developer would see as an error goes to `complaints`."""
    page = chromium().new_page(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    page.set_default_timeout(60_000)
    if complaints is not None:
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: complaints.append(said.text) if said.type == "error" else None,
        )
    try:
        yield page
    finally:
        page.close()


def bring_pictures(folder: Path, count: int = 4) -> dict[str, tuple[str, list[Path]]]:
    """Subject -> class and pictures. The first subject's first picture is a photograph: no alpha,
    and no even background."""
    from focusdpo.pocket.world.identities import class_names
    from focusdpo.pocket.world.world_subjects import WorldConfig, draw

    config = WorldConfig(subjects=count, references=2)
    found: dict[str, tuple[str, list[Path]]] = {}
    for one in draw("train", class_names("train"), count, config.references, config.seed):
        paths = []
        for at, picture in enumerate(one.pictures):
            alpha = picture.mask.astype(np.uint8) * np.uint8(255)
            rgba = Image.fromarray(np.dstack([picture.image, alpha]), "RGBA")
            large = rgba.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            path = folder / one.id / f"IMG {at + 1:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not found and at == 0:
                path = path.with_suffix(".jpg")
                ground = meadow(SIDE)
                ground.paste(large, (0, 0), large)
                ground.save(path, quality=92)
            else:
                large.save(path)
            paths.append(path)
        found[one.id] = (one.identity.class_name, paths)
    return found


def meadow(side: int) -> Image.Image:
    """A background in which no single colour can be found."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    rng = np.random.default_rng(0)
    sky = np.dstack([150 + 60 * rows, 190 + 20 * columns, 235 - 40 * rows])
    grass = np.dstack([90 + 60 * columns, 150 - 40 * rows, 70 + 30 * columns])
    picture = np.where((rows < 0.55 + 0.06 * np.sin(9 * columns))[..., None], sky, grass)
    blur = rng.normal(0, 14, (side // 8, side // 8))
    noise = np.asarray(Image.fromarray(blur).resize((side, side), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(picture + noise[..., None], 0, 255).astype(np.uint8))


def drop_files(page: Any, selector: str, paths: list[Path]) -> None:
    """Files dragged from the desktop onto an element."""
    import base64

    files = [
        {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths
    ]
    page.evaluate(
        """([selector, files]) => {
          const carried = new DataTransfer();
          for (const one of files) {
            const bytes = Uint8Array.from(atob(one.data), (c) => c.charCodeAt(0));
            carried.items.add(new File([bytes], one.name));
          }
          const target = document.querySelector(selector);
          for (const kind of ["dragenter", "dragover", "drop"]) {
            const about = {dataTransfer: carried, bubbles: true, cancelable: true};
            target.dispatchEvent(new DragEvent(kind, about));
          }
        }""",
        [selector, files],
    )


class Shots:
    """Pictures of the steps: small files, in a folder that the environment names, or nowhere."""

    def __init__(self, fallback: Path) -> None:
        self.folder = Path(os.environ.get("FOCUSDPO_SCREENSHOTS", fallback))
        self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, page: Any, name: str, *, full: bool = False) -> None:
        if full:
            page.evaluate("() => window.scrollTo(0, 0)")
        page.wait_for_timeout(250)  # pictures are decoded after they have come
        shown = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
        small = shown.quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(self.folder / f"{name}.png", optimize=True)


def wait_for_job(page: Any, seconds: float = 240) -> str:
    """Stay on a job's page until it has ended; its state."""
    deadline = time.monotonic() + seconds
    while (state := page.inner_text("#state")) in ("starting", "running", "stopping"):
        assert time.monotonic() < deadline, page.inner_text("#log")
        page.wait_for_timeout(300)
    return str(state)


def look_around(page: Any, address: str, shots: Shots) -> None:
    """The pages that only show: pairs, a pair, its scenes, rejects, focus maps."""
    page.goto(f"{address}/pairs?source=failure")
    shots.take(page, "look-pairs")
    page.locator("a[href^='/pairs/']").first.click()
    page.wait_for_load_state()
    shots.take(page, "look-pair")
    page.goto(f"{address}/scenes")
    page.locator("a[href^='/scenes/']").first.click()
    page.wait_for_load_state()
    shots.take(page, "look-scenes")
    page.goto(f"{address}/rejects?reason=weak_winner")
    shots.take(page, "look-rejects")
    page.goto(f"{address}/focus")
    page.locator("a[href^='/focus/']").last.click()
    page.locator("input[type=range]").wait_for(timeout=120_000)
    page.locator("input[type=range]").scroll_into_view_if_needed()
    shots.take(page, "look-focus")
