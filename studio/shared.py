"""What all pages share: the store, the version that is the newest now, and what is being changed:
drafts of subjects, jobs, the audit of reviews."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterable

from starlette.exceptions import HTTPException

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.subjects import ImageKey
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.audit import Audit
from focusdpo.pipeline.subjects.near_duplicates import picture_hash
from focusdpo.pipeline.subjects.registry import Registry, read_registry
from focusdpo.store.addresses import HEADER, files_of
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import latest_id
from focusdpo.studio.config import StudioConfig, drafts_folder, jobs_folder
from focusdpo.studio.drafts import Drafts, Instances
from focusdpo.studio.focus_maps import FocusWorker
from focusdpo.studio.job_files import Jobs
from focusdpo.studio.pictures import PictureCache
from focusdpo.studio.review_queue import Queue
from focusdpo.studio.run_reading import Found, find_runs
from focusdpo.studio.version_reading import Dataset

LOOK_AGAIN = 1.0
"""Seconds for which LATEST and the folders of runs are believed."""
NEXT = "add a subject, then build"


class Studio:
    """The state of one application. Safe for threads."""

    def __init__(self, config: StudioConfig) -> None:
        self.config = config
        self.kept = PictureCache()
        self.focus = FocusWorker(config.preset)
        self.drafts = Drafts(drafts_folder(config))
        self.jobs = Jobs(jobs_folder(config))
        self.instances = Instances()
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._latest: tuple[float, str | None] = (-LOOK_AGAIN, None)
        self._dataset: Dataset | None = None
        self._runs: tuple[float, Found | None] = (-LOOK_AGAIN, None)
        self._audit: Audit | None = None
        self._queue: tuple[str, Queue] | None = None
        self._hashes: dict[ImageKey, int] = {}
        self.drafts.clean()
        # A folder that holds something else is told now, not at the first look.
        self.store()

    @functools.cached_property
    def run(self) -> GenerateRun:
        """How pictures are read, and by which models: the preset's."""
        return resolve(GenerateRun, {"preset": self.config.preset})

    def store(self, *, create: bool = False) -> Store | None:
        """The root's store; None while there is no root yet and it is not to be made."""
        with self._lock:
            if self._store is None and (create or _is_root(self.config.root)):
                self._store = Store.open(self.config.root, create=create)
            return self._store

    def needed_store(self) -> Store:
        """The store, for pages that are nothing without one."""
        store = self.store()
        if store is None:
            raise HTTPException(404, f"{self.config.root}: no dataset here yet; {NEXT}")
        return store

    def latest(self) -> str | None:
        """Id of the newest version."""
        store = self.store()
        if store is None:
            return None
        when, name = self._latest
        now = time.monotonic()
        if now - when > LOOK_AGAIN:
            name = latest_id(store)
            self._latest = (now, name)
        return name

    def dataset(self) -> Dataset | None:
        """The newest version; None before the first. It is read once, and again when another is
        the newest."""
        store, name = self.store(), self.latest()
        if store is None or name is None:
            return None
        with self._lock:
            if self._dataset is None or self._dataset.id != name:
                self._dataset = Dataset(store, name)
            return self._dataset

    def warm(self) -> None:
        """Read the newest version now, so that the first page finds it read. What is wrong with it
        is for that page to say."""
        with contextlib.suppress(UserError):
            self.dataset()

    def needed_dataset(self) -> Dataset:
        """The newest version, for pages that are nothing without one."""
        dataset = self.dataset()
        if dataset is None:
            raise HTTPException(404, f"{self.config.root}: no dataset version yet; {NEXT}")
        return dataset

    def pair_row(self, pair_id: str) -> tuple[Dataset, IndexRow]:
        """A pair of the newest version; 404 where it has none of this name."""
        dataset = self.needed_dataset()
        row = dataset.row(pair_id)
        if row is None:
            raise HTTPException(404, f"version {dataset.id} has no pair '{pair_id}'")
        return dataset, row

    def picture_hash(self, key: ImageKey) -> int | None:
        """The perceptual hash of a stored picture, which its key names for good; None where it is
        gone or damaged, which its own page says."""
        if key not in self._hashes:
            try:
                self._hashes[key] = picture_hash(self.needed_store().image(key))
            except (UserError, FileNotFoundError):
                return None
        return self._hashes[key]

    def not_hashed(self, keys: Iterable[ImageKey]) -> int:
        """How many of these pictures are not hashed yet."""
        return sum(key not in self._hashes for key in keys)

    def registry(self) -> Registry | None:
        """Who is in the next version."""
        store = self.store()
        return None if store is None else read_registry(store)

    def runs(self) -> Found:
        """Training runs, evaluations and exports: a page with many pictures looks once."""
        when, runs = self._runs
        now = time.monotonic()
        if runs is None or now - when > LOOK_AGAIN:
            runs = find_runs(self.config)
            self._runs = (now, runs)
        return runs

    def audit(self, store: Store) -> Audit:
        """The root's reviews; what was read once is not read again."""
        with self._lock:
            if self._audit is None:
                self._audit = Audit(store)
            return self._audit

    def queue(self, dataset: Dataset) -> Queue:
        """The pairs of a version; the last one asked for is kept."""
        with self._lock:
            if self._queue is None or self._queue[0] != dataset.id:
                self._queue = dataset.id, Queue(dataset)
            return self._queue[1]

    def waiting(self) -> int:
        """Decisions of reviewers that the newest version has not taken in."""
        dataset = self.dataset()
        if dataset is None:
            return 0
        return self.queue(dataset).waiting(self.audit(dataset.store).reviews())

    def forget(self) -> None:
        """Look again at once: something was built."""
        self._latest = (-LOOK_AGAIN, None)
        self._runs = (-LOOK_AGAIN, None)


def _is_root(root: str) -> bool:
    files = files_of(root)
    if files.exists(HEADER):
        return True
    if files.names(""):
        Store.open(root, create=False)  # says what the folder is, or that it is none
    return False
