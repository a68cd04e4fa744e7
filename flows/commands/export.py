"""`focusdpo export`: results in layouts that others load."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.common import JSON, ROOT, finish, require_here, say
from focusdpo.flows.progress import working

app = typer.Typer(help="Make results ready to be given away.", no_args_is_help=True)

TO = Annotated[
    Literal["dir", "hub"],
    typer.Option("--to", help="dir: the folder --out; hub: the Hugging Face Hub, as --repo."),
]
OUT = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write; with --to hub it is kept besides, if given."),
]
REPO = Annotated[
    str | None, typer.Option("--repo", metavar="OWNER/NAME", help="With --to hub: where to.")
]
PUBLIC = Annotated[
    bool, typer.Option("--public", help="With --to hub: everybody may see a new repository.")
]


@app.command("dataset")
def dataset(
    root: ROOT,
    version: Annotated[str, typer.Option("--version", help="Dataset version.")] = "latest",
    to: TO = "dir",
    out: OUT = None,
    repo: REPO = None,
    public: PUBLIC = False,
    allow_unlicensed: Annotated[
        bool,
        typer.Option(
            "--allow-unlicensed", help="Export subjects that state no licence; the card says so."
        ),
    ] = False,
    json: JSON = False,
) -> None:
    """Write a dataset version for others: Parquet for `datasets`, shards for `webdataset`, a
    dataset card."""
    from focusdpo.flows.sharing.dataset_export import export_dataset

    with _target(to, out, repo) as folder:
        with working("exporting"):
            made = export_dataset(root, folder, version, allow_unlicensed=allow_unlicensed)
        counts = ", ".join(f"{name} {count}" for name, count in made.pairs.items())
        say(f"{folder}: version {made.version}, pairs: {counts}; {made.files} files")
        for name in made.unlicensed:
            say(f"no licence is stated: {name}")
        url = _send(folder, to, repo, "dataset", public, f"Dataset version {made.version}")
    told = {**asdict(made), "out": None if out is None else str(out), "url": url}
    finish({"command": "export dataset", **told}, json)


@app.command("adapter")
def adapter(
    adapter: Annotated[
        Path, typer.Option("--adapter", help="Folder or address that `train` wrote.")
    ],
    to: TO = "dir",
    out: OUT = None,
    repo: REPO = None,
    public: PUBLIC = False,
    layout: Annotated[
        Literal["diffusers", "uno"],
        typer.Option("--layout", help="diffusers: for load_lora_weights; uno: UNO's own names."),
    ] = "diffusers",
    uno: Annotated[
        str | None,
        typer.Option(
            "--uno",
            help="With --layout uno: UNO's dit_lora.safetensors, joined with the adapter so that "
            "UNO's code runs both on plain FLUX; without it the file holds the adapter alone.",
        ),
    ] = None,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluate", help="Folder or address of an evaluation for the card; may be repeated."
        ),
    ] = None,
    json: JSON = False,
) -> None:
    """Write an adapter with its model card: evaluation, settings, data version, licences, how to
    load it."""
    from focusdpo.flows.outputs import local
    from focusdpo.flows.sharing.adapter_export import export_adapter

    with _target(to, out, repo) as folder:
        made = export_adapter(
            local(adapter),
            folder,
            layout,
            uno=uno,
            evaluations=[local(one) for one in evaluate or ()],
        )
        say(f"{made}: {', '.join(sorted(file.name for file in made.iterdir()))}")
        url = _send(folder, to, repo, "model", public, "FocusDPO adapter")
    told = {"out": None if out is None else str(out), "layout": layout, "url": url}
    finish({"command": "export adapter", **told}, json)


@contextmanager
def _target(to: str, out: Path | None, repo: str | None) -> Iterator[Path]:
    """The folder to write: `--out`, or for the Hub one that goes away. What is wrong with the
    options, the token or the network settings is said before anything is computed."""
    require_here(out)
    if to == "hub":
        from focusdpo.flows.sharing.hub import check_hub

        if repo is None:
            raise UserError("--to hub needs --repo OWNER/NAME")
        check_hub(repo)
        with tempfile.TemporaryDirectory(prefix="focusdpo-export-") as temp:
            yield out or Path(temp) / "export"
        return
    if out is None or repo is not None:
        raise UserError("--to dir needs --out FOLDER, and no --repo")
    yield out


def _send(
    folder: Path,
    to: str,
    repo: str | None,
    kind: Literal["dataset", "model"],
    public: bool,
    message: str,
) -> str | None:
    if to != "hub" or repo is None:
        return None
    from focusdpo.flows.sharing.hub import upload

    with working(f"sending to {repo}"):
        url = upload(folder, repo, kind, public=public, message=message)
    say(url)
    return url
