"""Curves and sample pictures in wandb, trackio or mlflow, through accelerate's trackers.

What a tracker needs is looked at before a run loads anything. One that fails later is told of and
left out: a training does not end because of a page that shows it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.local import write_whole

log = logging.getLogger(__name__)

PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""Tracker -> what to install."""
KNOWN = "trackers.json"
"""In the run's folder: under which ids trackers know it, so that a resumed run goes on there."""


def require_trackers(names: Sequence[str]) -> None:
    """UserError for a tracker whose package is not installed, or that knows no login."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers: {name} is not installed: pip install {PACKAGES[name]}, or leave "
                "it out"
            )
    if "wandb" in names and not _wandb_may_start(os.environ):
        raise UserError(
            "train.trackers: wandb knows no login on this machine: run `wandb login`, set "
            "WANDB_API_KEY, or WANDB_MODE=offline to send later with `wandb sync`"
        )


def _wandb_may_start(environ: Mapping[str, str]) -> bool:
    if environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return True
    if environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    file = environ.get("NETRC") or str(Path("~/.netrc").expanduser())
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Trackers:
    """The trackers of a run, started. UserError for one that cannot be."""

    def __init__(
        self, names: Sequence[str], out_dir: Path, project: str, config: Mapping[str, Any]
    ) -> None:
        require_trackers(names)
        self._out_dir, self._project = out_dir, project
        path = out_dir / KNOWN
        self._ids: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
        self._running: dict[str, Any] = {}
        for name in names:
            try:
                self._running[name] = self._started(name)
                self._running[name].store_init_configuration(_flat(config))
            except _errors_of(name) as error:
                raise UserError(
                    f"train.trackers: {name} could not be started ({error}); check its settings, "
                    "or leave it out"
                ) from error
        if names:
            write_whole(path, json.dumps(self._ids, sort_keys=True).encode())

    def _started(self, name: str) -> Any:
        from accelerate import tracking

        run = self._out_dir.resolve().name
        # The same folder is the same run, whichever process goes on with it.
        folder_digest = hashlib.blake2b(
            str(self._out_dir.resolve()).encode(), digest_size=8
        ).hexdigest()
        tracker: Any
        if name == "wandb":
            known = self._ids.setdefault(name, folder_digest)
            tracker = tracking.WandBTracker(
                self._project, name=run, id=known, resume="allow", dir=str(self._out_dir)
            )
        elif name == "trackio":
            known = self._ids.setdefault(name, f"{run}-{folder_digest[:6]}")
            tracker = tracking.TrackioTracker(self._project, name=known, resume="allow")
        else:
            tracker = tracking.MLflowTracker(
                self._project, run_id=self._ids.get(name), run_name=run
            )
        tracker.start()
        if name == "mlflow":
            self._ids[name] = tracker.tracker.info.run_id
        return tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step; what is not finite is left out."""
        finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        self._each(lambda _, tracker: tracker.log(finite, step=step))

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """A picture (H, W, 3)."""

        def send(kind: str, tracker: Any) -> None:
            if kind == "mlflow":
                import mlflow
                from PIL import Image

                mlflow.log_image(Image.fromarray(pixels), f"{name}/step-{step:06d}.png")
            elif kind == "trackio":
                import trackio

                tracker.tracker.log({name: trackio.Image(pixels)}, step=step)
            else:
                tracker.log_images({name: [pixels]}, step=step)

        self._each(send)

    def close(self) -> None:
        """Everything is sent."""
        self._each(lambda _, tracker: tracker.finish())
        self._running.clear()

    def _each(self, call: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                call(name, tracker)
            except _errors_of(name) as error:
                log.warning("%s gets nothing more of this run: %s", name, error)
                del self._running[name]


def _errors_of(name: str) -> tuple[type[Exception], ...]:
    """What goes wrong outside: networks, and what a tracker's package raises of its own."""
    if name == "wandb":
        return OSError, importlib.import_module("wandb.errors").Error
    if name == "mlflow":
        return OSError, importlib.import_module("mlflow.exceptions").MlflowException
    return OSError, importlib.import_module("httpx").HTTPError


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value if isinstance(value, int | float | str) else str(value)
    return flat
