"""Looking at validation scenes while training: when it stops, which weights are kept, and that
kills do not show."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, Interrupted, stop_at, table_rows

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import WEIGHTS, policy_parameters, read_card
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.training import run as training
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import TrainResult, train
from focusdpo.model.training.run_state import Validate
from focusdpo.store.samples import Sample

FEW = {"batch_pairs": 2, "save_every": 100, "tensorboard": False}
SCORES = (0.1, 0.3, 0.2, 0.3, 0.9, 1.0)
"""Of looks at every second step: the best of the first four is that at step 4."""


def settings(steps: int = 12, **validation: Any) -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS | FEW | {"steps": steps, "validation": validation})


class Scripted:
    """Validation that finds what it is told."""

    def __init__(self, *scores: float) -> None:
        self._scores = list(scores)

    def __call__(self) -> Mapping[str, float]:
        return {"score": self._scores.pop(0), "identity": 0.0}


def weights_of(backbone: FluxBackbone) -> dict[str, NDArray[Any]]:
    """The policy's weights, under the names of an adapter's file."""
    return {
        f"transformer.{name.replace('.policy.', '.')}": p.detach().numpy().copy()
        for name, p in policy_parameters(backbone.transformer).items()
    }


def digesting(backbone: FluxBackbone) -> Validate:
    """A score in [0, 1) that the weights decide, as good as drawn by lot."""

    def validate() -> Mapping[str, float]:
        digest = hashlib.blake2b(digest_size=4)
        for values in weights_of(backbone).values():
            digest.update(values.tobytes())
        return {"score": int.from_bytes(digest.digest(), "big") / 2**32}

    return validate


def run(
    samples: list[Sample],
    out: Path,
    config: TrainConfig,
    validate: Callable[[FluxBackbone], Validate] | None = None,
    progress: Any = None,
) -> TrainResult:
    backbone = tiny_backbone()
    look = validate(backbone) if validate else None
    return train(backbone, samples, config, out, validate=look, progress=progress)


def left(out: Path, result: TrainResult) -> tuple[Any, ...]:
    """All that must not depend on interruptions."""
    names = ("adapter/adapter.json", f"adapter/{WEIGHTS}", "focus.safetensors")
    files = {name: (out / name).read_bytes() for name in names}
    best = {path.name: path.read_bytes() for path in out.glob("best-*")}
    told = (result.steps, result.stopped, result.adapter_step, result.validation)
    return files, best, told, table_rows(out)


def same(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_it_stops_when_looks_get_no_better(
    pair_samples: list[Sample], tmp_path: Path, keep: str
) -> None:
    config = settings(every=2, patience=2, keep=keep)
    result = run(pair_samples, tmp_path / "run", config, lambda _: Scripted(*SCORES))
    assert (result.steps, result.stopped) == (8, True)
    assert [(row["step"], row["score"]) for row in result.validation] == [
        (2, 0.1),
        (4, 0.3),
        (6, 0.2),
        (8, 0.3),
    ]
    kept = 4 if keep == "best" else 8
    assert result.adapter_step == read_card(result.adapter).step == kept
    plain = run(pair_samples, tmp_path / "plain", settings(kept))
    assert plain.adapter_step == kept and not plain.stopped and plain.validation == []
    assert same(load_file(result.adapter / WEIGHTS), load_file(plain.adapter / WEIGHTS))
    best = sorted(path.name for path in (tmp_path / "run").glob("best-*"))
    assert best == (["best-000004.safetensors"] if keep == "best" else [])


def test_without_patience_it_goes_to_the_end(pair_samples: list[Sample], tmp_path: Path) -> None:
    config = settings(7, every=3, keep="best")
    result = run(pair_samples, tmp_path, config, lambda _: Scripted(0.5, 0.5))
    assert (result.steps, result.stopped, result.adapter_step) == (7, False, 3)
    assert [row["step"] for row in result.validation] == [3, 6]


def test_a_run_too_short_for_a_look_keeps_its_last_weights(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    config = settings(2, every=5, keep="best")
    result = run(pair_samples, tmp_path / "run", config, lambda _: Scripted())
    assert result.adapter_step == read_card(result.adapter).step == 2
    plain = run(pair_samples, tmp_path / "plain", settings(2))
    assert same(load_file(result.adapter / WEIGHTS), load_file(plain.adapter / WEIGHTS))


@pytest.fixture(scope="module")
def straight(
    pair_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainResult]:
    """A run with looks that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight")
    return out, run(pair_samples, out, LOOKS, digesting)


LOOKS = settings(20, every=2, patience=3, keep="best")


def test_the_undisturbed_run_has_something_to_lose(straight: tuple[Path, TrainResult]) -> None:
    _, result = straight
    assert result.stopped and result.steps < 20
    assert 2 < result.adapter_step == result.steps - 6


@pytest.mark.parametrize("step", [2, 5, 6, 8, 9])
def test_an_interrupted_run_has_the_same_looks_and_stops_alike(
    straight: tuple[Path, TrainResult], pair_samples: list[Sample], tmp_path: Path, step: int
) -> None:
    with pytest.raises(Interrupted):
        run(pair_samples, tmp_path, LOOKS, digesting, stop_at(step))
    result = run(pair_samples, tmp_path, LOOKS, digesting)
    assert result.resumed_from == step // 2 * 2, "there is a checkpoint at every look"
    assert left(tmp_path, result) == left(*straight)


def test_killed_between_a_look_and_its_checkpoint(
    straight: tuple[Path, TrainResult],
    pair_samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Best weights that no checkpoint tells of are written again."""
    best = straight[1].adapter_step

    def save(root: Path, step: int, *rest: Any) -> Path:
        if step == best:
            raise Interrupted
        return real(root, step, *rest)

    real = training.save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training, "save_checkpoint", save)
        run(pair_samples, tmp_path, LOOKS, digesting)
    assert (tmp_path / f"best-{best:06d}.safetensors").exists()
    result = run(pair_samples, tmp_path, LOOKS, digesting)
    assert result.resumed_from == best - 2
    assert left(tmp_path, result) == left(*straight)


def test_killed_after_it_decided_to_stop(
    straight: tuple[Path, TrainResult], pair_samples: list[Sample], tmp_path: Path
) -> None:
    steps = straight[1].steps
    with pytest.raises(Interrupted):
        run(pair_samples, tmp_path, LOOKS, digesting, stop_at(steps))
    result = run(pair_samples, tmp_path, LOOKS, lambda _: Scripted(), stop_at(steps + 1))
    assert result.resumed_from == steps
    assert left(tmp_path, result) == left(*straight)


@pytest.mark.parametrize("steps", [20, 40])
def test_a_stopped_run_is_finished(
    straight: tuple[Path, TrainResult], pair_samples: list[Sample], steps: int
) -> None:
    """Also when more steps are asked for than it was given."""
    out, first = straight
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    config = LOOKS.model_copy(update={"steps": steps})
    again = run(pair_samples, out, config, lambda _: Scripted())
    assert again.resumed_from == again.steps == first.steps
    assert (again.stopped, again.adapter_step) == (True, first.adapter_step)
    assert again.validation == first.validation
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_a_look_sees_the_average_and_training_goes_on_from_the_live_weights(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    def averaging(config: TrainConfig) -> TrainConfig:
        return config.model_copy(update={"ema": 0.9})

    seen: list[dict[str, NDArray[Any]]] = []

    def watching(backbone: FluxBackbone) -> Validate:
        def validate() -> Mapping[str, float]:
            seen.append(weights_of(backbone))
            return {"score": -float(len(seen))}

        return validate

    looked = run(pair_samples, tmp_path / "looks", averaging(settings(6, every=3)), watching)
    plain = run(pair_samples, tmp_path / "plain", averaging(settings(6)))
    assert table_rows(tmp_path / "looks") == table_rows(tmp_path / "plain")
    assert same(load_file(looked.adapter / WEIGHTS), load_file(plain.adapter / WEIGHTS))
    assert same(seen[1], load_file(plain.adapter / WEIGHTS))
    half = run(pair_samples, tmp_path / "half", averaging(settings(3)))
    assert same(seen[0], load_file(half.adapter / WEIGHTS))
    live = run(pair_samples, tmp_path / "live", settings(3))
    assert not same(seen[0], load_file(live.adapter / WEIGHTS))
    best = averaging(settings(6, every=3, keep="best"))
    kept = run(pair_samples, tmp_path / "best", best, lambda _: Scripted(2.0, 1.0))
    assert same(seen[0], load_file(kept.adapter / WEIGHTS))


def test_a_metric_that_is_not_measured_is_named_with_those_that_are(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    config = settings(2, every=1, metric="beauty")
    with pytest.raises(UserError, match="'beauty': the validation measures identity, score"):
        run(pair_samples, tmp_path, config, lambda _: Scripted(*SCORES))


@pytest.mark.parametrize("wish", [{"patience": 2}, {"keep": "best"}])
def test_consequences_need_looks(wish: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="need validation.every above 0"):
        settings(every=0, **wish)
    assert settings(every=1, **wish)


def test_looks_need_someone_who_looks(pair_samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no `validate` was given"):
        run(pair_samples, tmp_path, settings(every=1))
