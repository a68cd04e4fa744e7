"""Settings of the focus maps and of the noise levels, typed and closed. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from focusdpo.data_schemas.strict import StrictModel
from focusdpo.model.backbone import FeatureConfig


class FocusConfig(StrictModel):
    """Where and when the loss looks (design: FocusDPO). Doubtful choices name their alternatives;
    the first value is the default reading of the paper's figure."""

    features: FeatureConfig = Field(FeatureConfig(), description="token features to correspond on")
    features_from: Literal["policy", "reference"] = Field(
        "policy", description="whose pass they are read from; the reference policy's never drift"
    )
    prior_cover: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a token's pixels that the region must cover for the token to be in "
        "M_prior; 0: any pixel. Tokens on a subject's outline are covered in part",
    )
    prior_ring: int = Field(0, ge=0, description="rings of tokens by which M_prior is widened")
    use_structure: bool = Field(True, description="use M_s: split the subject by correspondence")
    use_detail: bool = Field(True, description="use M_d: add complexity once aligned")
    kappa: float = Field(1.0, ge=0, description="how many tokens match a reference, see k_rule")
    tau: float = Field(0.7, ge=0, le=1, description="what M_d's gate compares with, see gate")
    w_bg: float = Field(0.1, ge=0, description="weight outside M_prior")
    w_low: float = Field(0.5, ge=0, description="weight of subject tokens that already match (M')")
    w_high: float = Field(1.5, ge=0, description="weight of subject tokens that do not (M_s)")
    lambda_d: float = Field(1.0, ge=0, description="weight of M_d")
    pool: Literal["mean", "max", "patches"] = Field(
        "mean",
        description="one vector per reference: masked mean, or masked maximum; patches: none, a "
        "target token is as similar as its nearest token of the reference. With attention: mean "
        "over the reference's tokens, or (max, patches) the largest",
    )
    k_rule: Literal["area", "fraction", "fixed", "threshold", "noise"] = Field(
        "area",
        description="k_r, the tokens that match reference r. area: round(kappa * tokens of subject "
        "r); fraction: round(kappa * N / R), a share kappa of all N tokens for R references "
        "together (set kappa to 0.3 or so); fixed: fixed_k; threshold: all tokens of similarity >= "
        "match_threshold; noise: round(kappa * (1 - sigma) * tokens of subject r)",
    )
    fixed_k: int = Field(8, ge=0, description="k_r of k_rule fixed")
    match_threshold: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="of k_rule threshold: a cosine; attention is spread over N tokens, so there a "
        "few times 1 / N",
    )
    domain: Literal["image", "prior"] = Field(
        "image", description="top-k over the whole image, or inside M_prior alone"
    )
    overlap: Literal["max", "argmax"] = Field(
        "max", description="a token claimed by two references counts for both, or for the nearer"
    )
    gate: Literal["overlap", "always", "never", "noise", "similarity", "soft"] = Field(
        "overlap",
        description="when M_d is on. overlap: alignment A >= tau; always; never; noise: sigma <= "
        "gate_sigma; similarity: mean similarity of the matched tokens >= tau; soft: by "
        "sigmoid((A - tau) / gate_temperature)",
    )
    gate_sigma: float = Field(0.5, ge=0, le=1, description="of gate noise")
    gate_temperature: float = Field(0.1, gt=0, description="of gate soft; towards 0: overlap")
    combine: Literal["add", "multiply", "replace"] = Field(
        "add",
        description="W + g lambda_d M_d; or W (1 + g lambda_d M_d); or, inside M_prior, "
        "(1 - g) W + g (w_low + lambda_d M_d): once aligned, detail alone ranks the subject's "
        "tokens",
    )
    branches: Literal["each", "winner", "split"] = Field(
        "each",
        description="maps from each branch's own features, or the winner's for both; split: each "
        "its own, the winner weighed by M_d without M_s (reward), the loser by M_s without M_d "
        "(penalty)",
    )
    detail_image: Literal["winner", "each"] = Field(
        "winner", description="whose complexity M_d is: the winner's for both, or each its own"
    )
    normalise: Literal["mean", "none", "masks"] = Field(
        "mean",
        description="divide W by its mean, so that beta keeps its meaning; none: leave it; masks: "
        "first spread each mask's weight (w_bg, w_low, w_high, g lambda_d) over its tokens, so "
        "that it counts as much however many they are, then divide W by its mean",
    )

    @property
    def needs_features(self) -> bool:
        """Whether maps of a pass are needed: any that depends on its features or noise level."""
        acts = self.lambda_d > 0 or self.combine == "replace"
        gated = self.use_detail and acts and self.gate not in ("always", "never")
        return self.use_structure or gated


class NoiseConfig(StrictModel):
    """How noise levels are drawn."""

    distribution: Literal["logit_normal", "uniform", "beta"] = Field(
        "logit_normal", description="of sigma; beta: Beta(bump, bump), a bump about the middle"
    )
    mean: float = Field(0.0, description="logit_normal: mean of the logit")
    std: float = Field(1.0, gt=0, description="logit_normal: standard deviation of the logit")
    bump: float = Field(2.0, gt=0, description="beta: 1 is uniform, more gathers in the middle")
    shift: float = Field(
        1.0, gt=0, description="sigma -> shift * sigma / (1 + (shift - 1) * sigma), as FLUX does"
    )
    stratified: bool = Field(
        False,
        description="one draw from each of as many equal strata as a step has pairs, so that every "
        "step sees all noise levels",
    )


class PremiseConfig(StrictModel):
    """What is measured over many pairs: does alignment rise as noise falls?"""

    sigmas: tuple[float, ...] = Field(
        (0.95, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.02),
        description="noise levels of maps and curves, two or more; kept from most to least noise",
    )
    kinds: tuple[Literal["keys", "queries", "block_output", "attention"], ...] = Field(
        ("keys", "queries", "block_output", "attention"),
        description="kinds of features in the table, each at every block of the backbone",
    )
    resamples: int = Field(1000, ge=1, description="of the bootstrap over pairs")
    level: float = Field(0.95, gt=0, lt=1, description="of its intervals")
    batch_pairs: int = Field(8, ge=1, description="pairs in one forward pass")

    @field_validator("sigmas")
    @classmethod
    def _descending(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        wanted = tuple(sorted(set(sigmas), reverse=True))
        if len(wanted) < 2 or not 0 < wanted[-1] <= wanted[0] < 1:
            raise ValueError("expected two or more different noise levels above 0 and below 1")
        return wanted
