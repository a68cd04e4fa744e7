"""Texts, table and examples of the demo app."""

from __future__ import annotations

import base64
import html
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import encode_png
from focusdpo.flows.licences import POCKET, notices
from focusdpo.flows.markdown import one_line
from focusdpo.flows.models_config import Family
from focusdpo.pipeline.parts import Image

CSS = """
.gradio-container { max-width: 1100px !important; margin: auto; }
.or, .subdued, .info-text { color: var(--body-text-color) !important; }
#base img, #adapted img, .as-seen img { image-rendering: pixelated; }
.as-seen { display: flex; flex-direction: column; align-items: center; gap: .3rem; }
.as-seen img, .as-seen div { width: 8rem; height: 8rem; background: #fff; border-radius: .4rem; }
.as-seen div { border: 1px dashed #8888; background: none; }
#base, #adapted { min-height: 12rem; }
#base .grid-wrap, #adapted .grid-wrap { min-height: 0; height: auto; }
#numbers table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
#numbers caption { text-align: left; font-weight: 600; padding: .3rem 0; }
#numbers th, #numbers td {
  text-align: left; padding: .35rem .6rem; border: 0; border-bottom: 1px solid #8886;
}
#numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
#numbers small { font-weight: 400; }
"""
_ORDERS = (
    ("Example: one subject", 1, "a {0} on snow"),
    ("Example: two subjects", 2, "a {0} and a {1} on grass"),
    ("Example: three subjects", 3, "a {0}, a {1} and a {2} on sand"),
)


def head_text(family: Family, adapter: Path | None) -> str:
    """What the page is, and what it shows."""
    limits = (
        "The embedded pocket models paint 64 x 64 pixels on a CPU and know the words of the lists."
        if isinstance(family, str)
        else f"Backbone: {one_line(family.backbone.kind)}."
    )
    shown = (
        "Both models paint the same prompt from the same noise."
        if adapter is not None
        else "**No adapter was given, so only the base is shown.**"
    )
    return (
        "# FocusDPO: subjects that stay apart\n"
        "Upload one to three subjects, say what each is, and write a prompt. "
        f"{shown} An independent judge then measures how well each subject kept its identity and "
        f"how much leaked into another. {limits}"
    )


def licence_text(family: Family, adapter: Path | None) -> str:
    """Who may use the pictures for what."""
    lines = [f"base: {POCKET}"] if isinstance(family, str) else notices(family)
    if adapter is not None:
        lines += adapter_licences(adapter)
    told = "\n".join(f"- {one_line(line)}" for line in dict.fromkeys(lines))
    return (
        "### Licences\nUpload only pictures that you may use; they are deleted within two hours. "
        f"Pictures that you make may be used as far as these allow:\n\n{told}"
    )


def adapter_licences(adapter: Path) -> list[str]:
    """What an adapter's card says. UserError when it has none."""
    card = adapter / "adapter.json"
    try:
        return [str(one) for one in json.loads(card.read_text("utf-8")).get("licences", [])]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{card}: absent or damaged; give a folder that `train` wrote") from error


def subject_view(at: int, image: Image | None) -> str:
    """A subject as the generator is shown it, or its empty place."""
    text = f"Subject {at} as the model sees it"
    if image is None:
        return f'<div class="as-seen"><div></div><small>{text}</small></div>'
    data = base64.b64encode(encode_png(image)).decode()
    return (
        f'<div class="as-seen"><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<small>{text}</small></div>"
    )


def numbers_table(names: Sequence[str], rows: Sequence[tuple[str, str, list[str]]]) -> str:
    """The metrics, a column per model."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{html.escape(label)}<br><small>{html.escape(meaning)}</small></th>'
        + "".join(f"<td>{html.escape(value)}</td>" for value in values)
        + "</tr>"
        for label, meaning, values in rows
    )
    return (
        "<table><caption>What the judge sees, mean over the pictures</caption>"
        f'<thead><tr><th scope="col">metric</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def examples(folder: Path) -> list[tuple[str, list[Any]]]:
    """(title, [files, words, prompt]): individuals of the embedded world, rendered now."""
    from focusdpo.flows.world_subjects import WorldConfig, export

    export(folder / "subjects", WorldConfig(subjects=6, references=1, seed=11))
    subjects = []
    for one in sorted((folder / "subjects").glob("*/00.png")):
        word = one.parent.name.rpartition("-")[0].replace("-", " ")
        subjects.append((str(shutil.copy(one, one.parent / f"{word}.png")), word))
    made, start = [], 0
    for title, count, text in _ORDERS:
        chosen = subjects[start : start + count]
        start += count
        words = [word for _, word in chosen]
        blank = [None] * (3 - count)
        files: list[str | None] = [file for file, _ in chosen]
        made.append((title, [*files, *blank, *words, *blank, text.format(*words)]))
    return made
