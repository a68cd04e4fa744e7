"""Small random checkpoints of every role in their public layouts, and a preset that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_detectors
import tiny_encoders
import tiny_filter
import tiny_flux
import tiny_flux2
import tiny_sdxl
import yaml
from pydantic import BaseModel

KINDS = ("flux-uno", "sdxl-ip-adapter", "flux2-klein")


def backbone_config(kind: str, folder: Path) -> BaseModel:
    if kind == "flux-uno":
        base, uno = tiny_flux.make_flux(folder / "flux"), tiny_flux.make_uno(folder / "uno")
        return tiny_flux.tiny_config(base, uno)
    if kind == "sdxl-ip-adapter":
        return tiny_sdxl.tiny_config(tiny_sdxl.save_tiny_sdxl(folder / "sdxl"))
    return tiny_flux2.tiny_config(tiny_flux2.save_tiny_flux2(folder / "flux2"))


def _segmenter(folder: Path, sam: Path) -> dict[str, Any]:
    # Random weights see something everywhere: the one box that they like best is the subject.
    detection = {"box_threshold": 0.0, "text_threshold": 0.0, "max_boxes": 1}
    detection |= {"shorter_side": 128, "longer_side": 128}
    return {
        "kind": "grounding-sam-hf",
        "detector": str(folder),
        "sam": str(sam),
        "detection": detection,
    }


def models(kind: str, folder: Path) -> dict[str, Any]:
    """The `models` section of a suite whose checkpoints are written to `folder`."""
    detector = tiny_detectors.write_detector_folder(folder / "detector")
    sam = tiny_detectors.write_sam_folder(folder / "sam")
    sam2 = tiny_detectors.write_sam2_folder(folder / "sam2")
    return {
        "device": "cpu",
        "backbone": backbone_config(kind, folder).model_dump(mode="json"),
        "segmenter": _segmenter(detector, sam),
        "judge_segmenter": _segmenter(detector, sam2),
        "identity": {
            "kind": "dino",
            "source": str(tiny_encoders.save_dino_folder(folder / "dino")),
        },
        "judge_identity": {
            "kind": "dinov2",
            "source": str(tiny_encoders.save_dinov2_folder(folder / "dinov2")),
        },
        "clip": {"kind": "clip", "source": str(tiny_encoders.save_clip_folder(folder / "clip"))},
        # Random weights refuse anything: none is as sure as that.
        "safety": {
            "source": str(tiny_filter.save_filter_folder(folder / "filter")),
            "threshold": 1.0,
        },
    }


def write_preset(kind: str, folder: Path) -> Path:
    """A preset for `--preset` at 64 x 64 pixels whose thresholds let random weights pass."""
    tree = {
        "suite": "checkpoints",
        "models": models(kind, folder),
        "ingest": {"size": 64, "min_side": 64},
        "compose": {"pair_rate": 1.0, "variants": 2},
        "generate": {"candidates": 2},
        "segment": {"min_confidence": 0.0, "min_area": 0.0},
        "pair": {
            "min_winner_identity": -1,
            "min_winner_margin": -2,
            "min_drop": 0,
            "min_drop_each": -2,
            "clip_t_tolerance": 2,
            "rank_margin": 0,
            "rank_tolerance": 2,
        },
        "shard": {"val_share": 0.0},
        "train": {
            "steps": 2,
            "batch_pairs": 2,
            "warmup": 0,
            "lora": {"rank": 2, "alpha": 2},
            "tensorboard": False,
        },
        "evaluate": {"min_confidence": 0.0, "min_area": 0.0, "resamples": 100},
    }
    path = folder / "preset.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
