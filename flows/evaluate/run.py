"""evaluate without an engine: the run's settings and models, handed to the evaluation."""

from __future__ import annotations

from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.evaluation import run as evaluation
from focusdpo.evaluation.folder import EvaluateResult
from focusdpo.evaluation.protocols import Request
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.settings import as_yaml
from focusdpo.flows.wiring import suite


def request_of(run: EvaluateRun) -> Request:
    """What the evaluation is told."""
    return Request(
        protocol=run.protocol,
        adapter=run.adapter,
        out=run.out,
        data=run.data,
        suite=run.suite,
        models=suite(run.family),
        named=run.models.model_dump() if run.models is not None else {},
        evaluate=run.evaluate,
        held_out=run.held_out,
        dreambench=run.dreambench,
        own_scenes=run.own_scenes,
        ingest=run.ingest,
        settings=as_yaml(run),
    )


def evaluate(run: EvaluateRun, watch: Watch = quiet) -> EvaluateResult:
    """Base against `run.adapter`, written to `run.out`. UserError as `evaluation.run.evaluate`."""
    return evaluation.evaluate(request_of(run), watch)


def finished(run: EvaluateRun) -> EvaluateResult | None:
    """The result of this very evaluation, when it is there already. Loads no model."""
    return evaluation.finished(request_of(run))
