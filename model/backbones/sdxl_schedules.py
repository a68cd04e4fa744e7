"""Which schedulers of a checkpoint SDXL's noise can be taken from. No torch."""

from __future__ import annotations

from typing import Any

from focusdpo.data_schemas.errors import UserError

SAMPLERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
QUIET = (*SAMPLERS.values(), "PNDMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler")
"""Samplers that draw no noise on their way: an image depends on its seed alone."""
_PREDICTIONS = ("epsilon", "v_prediction")


def check_scheduler(config: dict[str, Any], sampler: str, field: str) -> str:
    """One line on a checkpoint's scheduler_config.json. UserError for one that is not of SDXL's
    kind or, where the checkpoint's own sampler is asked for, draws noise on its way."""
    name = str(config.get("_class_name", "a scheduler without a class"))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or "sigma_data" in config or "beta_start" not in config:
        raise UserError(
            f"{field}: {name} with prediction_type {prediction!r} is not a schedule of SDXL; "
            f"{' and '.join(_PREDICTIONS)} on a beta schedule are"
        )
    noisy = name not in QUIET or str(config.get("algorithm_type", "")).startswith("sde")
    if sampler == "checkpoint" and noisy:
        raise UserError(
            f"{field}: {name} draws noise on its way or is not known here; set "
            f"models.backbone.scheduler to {', '.join(SAMPLERS)}"
        )
    return f"{name if sampler == 'checkpoint' else SAMPLERS[sampler]}, predicts {prediction}"
