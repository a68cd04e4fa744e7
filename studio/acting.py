"""What the pages that change things share: drafts of subjects, jobs, the audit of reviews."""

from __future__ import annotations

import functools
import threading

from starlette.requests import Request

from focusdpo.flows.config import GenerateRun
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.reviews import Audit
from focusdpo.store.artefacts import Store
from focusdpo.studio.drafts import Drafts
from focusdpo.studio.job_files import Jobs
from focusdpo.studio.masks import Instances
from focusdpo.studio.review_queue import Queue
from focusdpo.studio.settings import StudioConfig, drafts_folder, jobs_folder
from focusdpo.studio.version_reading import Dataset


class Acting:
    """Made once per application. Safe for threads."""

    def __init__(self, config: StudioConfig) -> None:
        self.config = config
        self.drafts = Drafts(drafts_folder(config))
        self.jobs = Jobs(jobs_folder(config))
        self.instances = Instances()
        self._lock = threading.Lock()
        self._audit: Audit | None = None
        self._queue: tuple[str, Queue] | None = None
        self.drafts.clean()

    @functools.cached_property
    def run(self) -> GenerateRun:
        """How pictures are read, and by which models: the preset's."""
        return resolve(GenerateRun, {"preset": self.config.preset})

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


def acting_of(request: Request) -> Acting:
    """The application's."""
    acting: Acting = request.app.state.acting
    return acting
