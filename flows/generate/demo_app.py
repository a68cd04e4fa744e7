"""`focusdpo demo-app` and `space/app.py`: upload subjects, say what is to be seen, compare.

Nothing is asked of the network: system fonts, no analytics, and a policy that forbids the browser
any other address. Uploads are read as `build-dataset` reads pictures: by their bytes, whatever
their names say, with their size checked before they are decoded.
"""

from __future__ import annotations

import base64
import functools
import html
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.prompts import MOST_SUBJECTS, caption
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.generate.hosts import Hosts, is_same_origin, is_wildcard
from focusdpo.flows.generate.inference import (
    MAX_SEED,
    Painted,
    ReferenceUsed,
    not_in_prompt,
    unsaid,
)
from focusdpo.flows.generate.side_by_side import SideBySide, rows
from focusdpo.flows.models_config import Family
from focusdpo.pipeline.parts import Image
from focusdpo.reports.metric_texts import one_line
from focusdpo.store.keys import unsealed
from focusdpo.store.provenance import ADAPTER_FOLDER, POCKET, notices, require_kind

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
    ("Example: one subject", 1, "snow"),
    ("Example: two subjects", 2, "grass"),
    ("Example: three subjects", 3, "sand"),
)


def head_text(family: Family, adapter: Path | None) -> str:
    """What the page is, and what it shows."""
    limits = (
        "The embedded pocket models paint 96 x 96 pixels on a CPU and know the words of the lists."
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
    listed = "\n".join(f"- {one_line(line)}" for line in dict.fromkeys(lines))
    return (
        "### Licences\nUpload only pictures that you may use; they are deleted within two hours. "
        f"Pictures that you make may be used as far as these allow:\n\n{listed}"
    )


def adapter_licences(adapter: Path) -> list[str]:
    """What an adapter's card says. UserError when it has none."""
    require_kind(adapter, ADAPTER_FOLDER)
    card = adapter / "adapter.json"
    try:
        return [str(licence) for licence in unsealed(card.read_bytes()).get("licences", [])]
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
    from focusdpo.pocket.world.world_subjects import WorldConfig, export

    export(folder / "subjects", WorldConfig(subjects=6, references=1, seed=11))
    subjects = []
    for picture in sorted((folder / "subjects").glob("*/00.png")):
        word = picture.parent.name.rpartition("-")[0].replace("-", " ")
        subjects.append((str(shutil.copy(picture, picture.parent / f"{word}.png")), word))
    made, start = [], 0
    for title, count, ground in _ORDERS:
        chosen = subjects[start : start + count]
        start += count
        words = [word for _, word in chosen]
        blank = [None] * (3 - count)
        files: list[str | None] = [file for file, _ in chosen]
        made.append((title, [*files, *blank, *words, *blank, caption(words, ground)]))
    return made


MAX_PROMPT = 300
MAX_PICTURES = 4
MAX_FILE = "10mb"
MAX_WAITING = 16
KEPT_SECONDS = 600.0
SPACE_HOST = "SPACE_HOST"
"""In the environment of a Space: the name by which visitors reach it."""
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss: data: blob:; object-src 'none'"
)


@dataclass(frozen=True)
class DemoAppConfig:
    """What is shown and where."""

    preset: str | GenerateRun = "pocket"
    adapter: Path | None = None
    settings: tuple[str, ...] = ()
    host: str | None = None
    """None: GRADIO_SERVER_NAME, or this machine alone."""
    port: int | None = None
    """None: GRADIO_SERVER_PORT, or the first free one from 7860 on."""


def serve(config: DemoAppConfig) -> None:
    """Serve until stopped. UserError when gradio is missing or the adapter is none."""
    blocks, folder = build(config)
    gradio = _gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    with folder:
        blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1).launch(
            server_name=config.host,
            server_port=config.port or None,
            max_file_size=MAX_FILE,
            theme=gradio.themes.Base(**fonts),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            share=False,
            quiet=True,
            app_kwargs={"middleware": [_policy(config.host)]},
        )


def build(config: DemoAppConfig) -> tuple[Any, tempfile.TemporaryDirectory[str]]:
    """The app, and the folder of its pictures, which goes with it."""
    gradio = _gradio()
    models = SideBySide.of(config.preset, config.adapter, config.settings)
    folder = tempfile.TemporaryDirectory(prefix="focusdpo-demo-")
    handlers = Handlers(models, Path(folder.name), gradio.Error)
    classes = models.base.classes
    with gradio.Blocks(
        title="FocusDPO", analytics_enabled=False, delete_cache=(600, 3600)
    ) as blocks:
        gradio.Markdown(head_text(models.base.run.family, config.adapter))
        files, words, views = [], [], []
        with gradio.Row():
            for at in range(1, MOST_SUBJECTS + 1):
                with gradio.Column(min_width=180):
                    label = f"Subject {at}" + (" (optional)" if at > 1 else "")
                    files.append(
                        gradio.File(
                            label=f"{label}: picture",
                            file_types=[".png", ".jpg", ".jpeg", ".webp", ".gif"],
                            height=170,
                            elem_id=f"file-{at}",
                        )
                    )
                    words.append(
                        gradio.Dropdown(
                            sorted(classes or ()),
                            value=None,
                            label=f"{label}: what it is",
                            allow_custom_value=classes is None,
                            elem_id=f"word-{at}",
                        )
                    )
                    views.append(gradio.HTML(subject_view(at, None), elem_id=f"view-{at}"))
        prompt = gradio.Textbox(
            label="Prompt",
            info="Name every subject by its word; empty: the subjects on a plain background.",
            max_length=MAX_PROMPT,
            elem_id="prompt",
        )
        with gradio.Row():
            for title, values in examples(Path(folder.name)):
                gradio.Button(title, size="sm").click(
                    lambda values=values: values, None, [*files, *words, prompt],
                    queue=False, api_visibility="private",
                )  # fmt: skip
        with gradio.Row():
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED - 8)
            count = gradio.Slider(1, MAX_PICTURES, value=2, step=1, label="Pictures of each model")
        paint = gradio.Button("Paint", variant="primary", elem_id="paint")
        with gradio.Row():
            base, adapted = (
                gradio.Gallery(
                    label=label, columns=2, object_fit="contain", format="png",
                    interactive=False, elem_id=name, buttons=["download", "fullscreen"],
                    visible=name == "base" or models.adapted is not None,
                )
                for label, name in (("Base", "base"), ("FocusDPO", "adapted"))
            )  # fmt: skip
        numbers = gradio.HTML(elem_id="numbers", label="Numbers")
        gradio.Markdown(licence_text(models.base.run.family, config.adapter))
        for at, (file, word, view) in enumerate(zip(files, words, views, strict=True), start=1):
            file.change(
                functools.partial(handlers.view, at), [file, word], view, api_visibility="private"
            )
        paint.click(
            handlers.paint,
            [*files, *words, prompt, seed, count],
            [base, adapted, numbers],
            api_visibility="private",
        )
    return blocks, folder


class Handlers:
    """What happens on a click; UserErrors become the page's own messages, escaped."""

    def __init__(self, models: SideBySide, folder: Path, error: type[Exception]) -> None:
        self.models = models
        self.folder = folder
        self.error = error

    def view(self, at: int, file: str | None, word: str | None) -> str:
        """A subject cut out, as the generator is shown it."""
        if not file:
            return subject_view(at, None)
        try:
            return subject_view(at, self.models.base.read(file, word or "object").image)
        except UserError as error:
            raise self._told(error, [file]) from error

    def paint(self, *given: Any) -> tuple[list[Any], list[Any], str]:
        """Galleries of both models and the table."""
        files, words, (prompt, seed, count) = (
            given[:MOST_SUBJECTS],
            given[MOST_SUBJECTS : 2 * MOST_SUBJECTS],
            given[2 * MOST_SUBJECTS :],
        )
        try:
            subjects = _subjects(files, words)
            text = str(prompt or "").strip() or None
            if text is not None and len(text) > MAX_PROMPT:
                raise UserError(f"the prompt has {len(text)} characters, at most {MAX_PROMPT}")
            if not 1 <= int(count or 0) <= MAX_PICTURES:
                raise UserError(f"pictures: 1 to {MAX_PICTURES}")
            first = int(seed or 0)
            sides = self.models.paint(text, subjects, range(first, first + int(count)))
        except UserError as error:
            raise self._told(error, [file for file in files if file]) from error
        self._clean()
        shown: list[list[Any]] = [self._files(side.pictures) for side in sides]
        asked = sides[0].pictures[0].about
        notes = [
            not_in_prompt(word, asked.prompt) for word in unsaid(asked.prompt, asked.class_names)
        ]
        table = "".join(f"<p>{html.escape(note)}.</p>" for note in notes)
        table += numbers_table([side.name for side in sides], rows(sides))
        return shown[0], shown[1] if len(shown) > 1 else [], table

    def _files(self, pictures: Sequence[Painted]) -> list[tuple[str, str]]:
        """PNGs that tell how they were made, but not where this machine keeps uploads."""
        made = []
        for painted in pictures:
            names = tuple(
                ReferenceUsed(file=Path(used.file).name, sha256=used.sha256)
                for used in painted.about.references
            )
            adapter = painted.about.adapter and Path(painted.about.adapter).name
            about = painted.about.model_copy(update={"references": names, "adapter": adapter})
            (seed,) = about.seeds
            path = self.folder / f"{time.time_ns()}-seed-{seed}.png"
            made.append(
                (str(Painted(painted.image, about, painted.marks).save(path)), f"seed {seed}")
            )
        return made

    def _clean(self) -> None:
        """Pictures are copied when they are shown; what is older has been."""
        for old in self.folder.glob("*-seed-*.png"):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                old.unlink(missing_ok=True)

    def _told(self, error: UserError, files: Sequence[str]) -> Exception:
        text = str(error).replace("--class-name ", "")
        for file in files:
            text = text.replace(str(file), Path(file).name)
        return self.error(html.escape(text))


def _subjects(files: Sequence[str | None], words: Sequence[str | None]) -> list[tuple[str, str]]:
    subjects = []
    for at, (file, word) in enumerate(zip(files, words, strict=True), start=1):
        if file and not word:
            raise UserError(f"subject {at}: say what it is")
        if word and not file:
            raise UserError(f"subject {at}: give a picture of the {word}, or clear its word")
        if file and word:
            subjects.append((file, word))
    if not subjects:
        raise UserError("give a picture of at least one subject, and say what it is")
    return subjects


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("the demo app needs gradio: pip install 'focusdpo[demo]'") from error
    return gradio


def _policy(host: str | None) -> Any:
    """Middleware that refuses foreign hosts and origins, and forbids pages to ask any other address
    for anything."""
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse

    at = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    space = os.environ.get(SPACE_HOST, "")
    hosts = Hosts(at, [space] if space else [], any_address=is_wildcard(at))

    def refusal(headers: Any) -> PlainTextResponse | None:
        try:
            ours = hosts.answer_to(headers.get("host", ""))
        except ValueError:
            return PlainTextResponse("The request's Host is no name and no address.\n", 400)
        if not ours:
            return PlainTextResponse("This name is not the app's; open it by its address.\n", 421)
        origin = headers.get("origin")
        if is_same_origin(origin, headers.get("host")) or (space and origin == f"https://{space}"):
            return None
        return PlainTextResponse("Only the app's own pages may ask it.\n", 403)

    class Policy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["Content-Security-Policy"] = POLICY
                    headers["X-Content-Type-Options"] = "nosniff"
                    headers["Referrer-Policy"] = "no-referrer"
                await send(message)

            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            refused = refusal(Headers(scope=scope))
            await (refused or self.app)(scope, receive, with_policy)

    return Middleware(Policy)
