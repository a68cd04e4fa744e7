"""Settings of the focus maps and of the noise levels, typed and closed. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.model.backbone import FeatureConfig

_CLOSED = ConfigDict(extra="forbid", frozen=True)


class FocusConfig(BaseModel):
    """Where and when the loss looks (design: FocusDPO). Doubtful choices name their alternatives;
    the first value is the default reading of the paper's figure."""

    model_config = _CLOSED

    features: FeatureConfig = Field(FeatureConfig(), description="token features to correspond on")
    use_structure: bool = Field(True, description="use M_s: split the subject by correspondence")
    use_detail: bool = Field(True, description="use M_d: add complexity once aligned")
    kappa: float = Field(1.0, ge=0, description="k_r = round(kappa * tokens of subject r)")
    tau: float = Field(0.7, ge=0, le=1, description="alignment at which M_d is switched on")
    w_bg: float = Field(0.1, ge=0, description="weight outside M_prior")
    w_low: float = Field(0.5, ge=0, description="weight of subject tokens that already match (M')")
    w_high: float = Field(1.5, ge=0, description="weight of subject tokens that do not (M_s)")
    lambda_d: float = Field(1.0, ge=0, description="weight of M_d")
    pool: Literal["mean", "max"] = Field(
        "mean", description="one vector per reference: masked mean, or masked maximum"
    )
    domain: Literal["image", "prior"] = Field(
        "image", description="top-k over the whole image, or inside M_prior alone"
    )
    overlap: Literal["max", "argmax"] = Field(
        "max", description="a token claimed by two references counts for both, or for the nearer"
    )
    gate: Literal["overlap", "always", "never"] = Field(
        "overlap", description="when M_d is on: alignment >= tau, always, never"
    )
    combine: Literal["add", "multiply"] = Field(
        "add", description="W + lambda_d M_d, or W (1 + lambda_d M_d)"
    )
    branches: Literal["each", "winner"] = Field(
        "each", description="maps from each branch's own features, or the winner's for both"
    )
    normalise: Literal["mean", "none"] = Field(
        "mean", description="divide W by its mean, so that beta keeps its meaning; or leave it"
    )

    @property
    def needs_features(self) -> bool:
        """Whether any map depends on token features."""
        gated = self.use_detail and self.lambda_d > 0 and self.gate == "overlap"
        return self.use_structure or gated


class NoiseConfig(BaseModel):
    """How noise levels are drawn."""

    model_config = _CLOSED

    distribution: Literal["logit_normal", "uniform"] = Field("logit_normal", description="of sigma")
    mean: float = Field(0.0, description="logit_normal: mean of the logit")
    std: float = Field(1.0, gt=0, description="logit_normal: standard deviation of the logit")
    shift: float = Field(
        1.0, gt=0, description="sigma -> shift * sigma / (1 + (shift - 1) * sigma), as FLUX does"
    )
