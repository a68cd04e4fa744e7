"""`focusdpo export` and `focusdpo report`: results for others to load or to read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.flows.commands.options import fetched, require_here, say
from focusdpo.flows.config import CLOSED, Root, Version
from focusdpo.flows.console import working
from focusdpo.flows.settings import Option
from focusdpo.sharing.pair_records import PairLayout

Marks = Annotated[
    bool,
    Option("--marks/--no-marks"),
    Field(description="winners and losers say that a model painted them (IPTC, as XMP)"),
]


class _Target(BaseModel):
    """Where an export goes."""

    model_config = CLOSED

    to: Annotated[Literal["dir", "hub"], Option("--to")] = Field(
        "dir", description="dir: the folder --out; hub: the Hugging Face Hub, as --repo"
    )
    out: Annotated[Path | None, Option("--out")] = Field(
        None, description="folder to write; with --to hub it is kept besides, if given"
    )
    repo: Annotated[str | None, Option("--repo", metavar="OWNER/NAME")] = Field(
        None, description="with --to hub: where to"
    )
    public: Annotated[bool, Option("--public")] = Field(
        False, description="with --to hub: everybody may see a new repository"
    )


class ExportDatasetRun(_Target):
    """`export dataset`: a version for others."""

    root: Root
    version: Version = "latest"
    allow_unlicensed: Annotated[bool, Option("--allow-unlicensed")] = Field(
        False, description="export subjects that state no licence; the card says so"
    )
    marks: Marks = True


class ExportPairsRun(BaseModel):
    """`export pairs`: a version in a trainer's layout."""

    model_config = CLOSED

    root: Root
    version: Version = "latest"
    out: Annotated[Path, Option("--out")] = Field(description="folder to write")
    layout: Annotated[PairLayout, Option("--layout")] = Field(
        "plain",
        description="plain: win/ lose/ masks/ references/ metadata.jsonl; or what Flow-Factory, "
        "SimpleTuner or VeRL-Omni reads",
    )
    allow_unlicensed: Annotated[bool, Option("--allow-unlicensed")] = Field(
        False, description="export subjects that state no licence"
    )
    marks: Marks = True


class ExportAdapterRun(_Target):
    """`export adapter`: an adapter with its card."""

    adapter: Annotated[Path, Option("--adapter")] = Field(
        description="the adapter: RUN/adapter of a training run, or its address"
    )
    layout: Annotated[Literal["diffusers", "uno", "comfyui"], Option("--layout")] = Field(
        "diffusers",
        title="Layout",
        description="diffusers: for load_lora_weights; uno: UNO's own names; comfyui: the names of "
        "the models' authors, with a workflow",
    )
    uno: Annotated[str | None, Option("--uno")] = Field(
        None,
        description="with --layout uno: UNO's dit_lora.safetensors, joined with the adapter so "
        "that UNO's code runs both on plain FLUX; without it the file holds the adapter alone",
    )
    evaluate: Annotated[tuple[Path, ...], Option("--evaluate")] = Field(
        (), description="folder or address of an evaluation for the card; may be repeated"
    )


def dataset(run: ExportDatasetRun) -> Mapping[str, Any]:
    """Write a dataset version for others: Parquet for `datasets`, shards for `webdataset`, a
    dataset card."""
    from focusdpo.sharing.dataset_export import export_dataset

    with _target(run) as folder:
        with working("exporting"):
            made = export_dataset(
                run.root,
                folder,
                run.version,
                allow_unlicensed=run.allow_unlicensed,
                marks=run.marks,
            )
        counts = ", ".join(f"{name} {count}" for name, count in made.pairs.items())
        say(f"{folder}: version {made.version}, pairs: {counts}; {counted(made.files, 'file')}")
        for name in made.unlicensed:
            say(f"no licence is stated: {name}")
        url = _send(run, folder, "dataset", f"Dataset version {made.version}")
    out = None if run.out is None else str(run.out)
    return {"command": "export dataset", **asdict(made), "out": out, "url": url}


def pairs(run: ExportPairsRun) -> Mapping[str, Any]:
    """Write a dataset version's pairs for another trainer: pictures, masks, references, and its own
    kind of table. `import pairs` reads each of them back."""
    from focusdpo.sharing.pair_layouts import export_pairs

    require_here(run.out)
    with working("exporting"):
        made = export_pairs(
            run.root,
            run.out,
            run.layout,
            run.version,
            allow_unlicensed=run.allow_unlicensed,
            marks=run.marks,
        )
    counts = ", ".join(f"{name} {count}" for name, count in made.pairs.items())
    say(f"{made.out}: version {made.version} for {made.layout}, pairs: {counts}")
    for name in made.unlicensed:
        say(f"no licence is stated: {name}")
    return {"command": "export pairs", **asdict(made), "out": str(made.out)}


def adapter(run: ExportAdapterRun) -> Mapping[str, Any]:
    """Write an adapter with its model card: evaluation, settings, data version, licences, how to
    load it."""
    from focusdpo.sharing.adapter_export import export_adapter
    from focusdpo.store.outputs import local

    with _target(run) as folder:
        evaluations = [local(address) for address in run.evaluate]
        with working("exporting"):
            made = export_adapter(
                local(run.adapter), folder, run.layout, uno=run.uno, evaluations=evaluations
            )
        say(f"{made}: {', '.join(sorted(file.name for file in made.iterdir()))}")
        url = _send(run, folder, "model", "FocusDPO adapter")
    out = None if run.out is None else str(run.out)
    return {"command": "export adapter", "out": out, "layout": run.layout, "url": url}


@contextmanager
def _target(run: _Target) -> Iterator[Path]:
    """The folder to write: `--out`, or for the Hub one that goes away. What is wrong with the
    options, the token or the network settings is said before anything is computed."""
    require_here(run.out)
    if run.to == "hub":
        from focusdpo.sharing.hub import check_hub

        if run.repo is None:
            raise UserError("--to hub needs --repo OWNER/NAME")
        check_hub(run.repo)
        with tempfile.TemporaryDirectory(prefix="focusdpo-export-") as temp:
            yield run.out or Path(temp) / "export"
        return
    if run.out is None or run.repo is not None:
        raise UserError("--to dir needs --out FOLDER, and no --repo")
    yield run.out


def _send(
    run: _Target, folder: Path, kind: Literal["dataset", "model"], message: str
) -> str | None:
    if run.to != "hub" or run.repo is None:
        return None
    from focusdpo.sharing.hub import upload

    with working(f"sending to {run.repo}"):
        url = upload(folder, run.repo, kind, public=run.public, message=message)
    say(url)
    return url


class ReportRun(BaseModel):
    """`report`: what a page shows."""

    model_config = CLOSED

    out: Annotated[Path, Option("--out")] = Field(
        Path("report.html"), description="the page to write"
    )
    root: Annotated[Path | None, Option("--root")] = Field(
        None, description="folder of a dataset to show"
    )
    version: Annotated[str, Option("--version")] = Field("latest", description="its version")
    train: Annotated[Path | None, Option("--train")] = Field(
        None, description="folder or address of a training run to show"
    )
    evaluate: Annotated[Path | None, Option("--evaluate")] = Field(
        None, description="folder or address of an evaluation to show"
    )
    compare: Annotated[tuple[str, str] | None, Option("--compare", metavar="A B")] = Field(
        None,
        description="show instead what differs from A to B: two versions of --root, or without "
        "--root two folders that `evaluate` wrote",
    )


def report(run: ReportRun) -> Mapping[str, Any]:
    """Write one self-contained HTML page about a dataset, a training run, an evaluation, or all
    three; or about what differs between two datasets or adapters."""
    from focusdpo.flows.build.changes import changed_causes
    from focusdpo.reports.comparison_page import write_comparison
    from focusdpo.reports.report import write_report

    if run.compare is not None and (run.train is not None or run.evaluate is not None):
        raise UserError(
            "--compare goes with --root (two versions) or alone (two evaluations), not with "
            "--train or --evaluate"
        )
    require_here(run.out)
    with working("writing the report"):
        page = (
            write_report(
                run.out,
                root=run.root,
                version=run.version,
                train_dir=fetched(run.train),
                evaluate_dir=fetched(run.evaluate),
            )
            if run.compare is None
            else write_comparison(
                run.out, *_sides(run.compare, run.root), root=run.root, causes=changed_causes
            )
        )
    say(f"report: {page}")
    return {"command": "report", "report": str(page)}


def _sides(compare: tuple[str, str], root: Path | None) -> tuple[str, str]:
    """Versions as they are; evaluations as folders of this machine."""
    a, b = compare if root is not None else [str(fetched(Path(side))) for side in compare]
    return a, b
