"""`focusdpo export` and `focusdpo report`: results for others to load or to read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.common import JSON, ROOT, fetched, finish, require_here, say
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
    from focusdpo.sharing.dataset_export import export_dataset

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
    from focusdpo.sharing.adapter_export import export_adapter
    from focusdpo.store.outputs import local

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
        from focusdpo.sharing.hub import check_hub

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
    from focusdpo.sharing.hub import upload

    with working(f"sending to {repo}"):
        url = upload(folder, repo, kind, public=public, message=message)
    say(url)
    return url


def report(
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of a dataset to show.")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Its version.")] = "latest",
    train_dir: Annotated[
        Path | None, typer.Option("--train", help="Folder or address of a training run to show.")
    ] = None,
    evaluate_dir: Annotated[
        Path | None, typer.Option("--evaluate", help="Folder or address of an evaluation to show.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Show instead what differs from A to B: two versions of --root, or without --root "
            "two folders that `evaluate` wrote.",
        ),
    ] = None,
    json: JSON = False,
) -> None:
    """Write one self-contained HTML page about a dataset, a training run, an evaluation, or all
    three; or about what differs between two datasets or adapters."""
    from focusdpo.flows.build.changes import changed_causes
    from focusdpo.reports.comparison_page import write_comparison
    from focusdpo.reports.report import write_report

    if compare is not None and (train_dir is not None or evaluate_dir is not None):
        raise UserError(
            "--compare goes with --root (two versions) or alone (two evaluations), not with "
            "--train or --evaluate"
        )
    require_here(out)
    with working("writing the report"):
        page = (
            write_report(
                out,
                root=root,
                version=version,
                train_dir=fetched(train_dir),
                evaluate_dir=fetched(evaluate_dir),
            )
            if compare is None
            else write_comparison(out, *_sides(compare, root), root=root, causes=changed_causes)
        )
    say(f"report: {page}")
    finish({"command": "report", "report": str(page)}, json)


def _sides(compare: tuple[str, str], root: Path | None) -> tuple[str, str]:
    """Versions as they are; evaluations as folders of this machine."""
    a, b = compare if root is not None else [str(fetched(Path(one))) for one in compare]
    return a, b
