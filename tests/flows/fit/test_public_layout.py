"""The shipped presets on the public repositories at full size: every row of the doctor but those
that need a GPU, what is downloaded, and what a command takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from public_layout import PUBLIC_BYTES, write_cache

from focusdpo.flows.checkpoint_suite import checks
from focusdpo.flows.commands.look import FetchRun, fetch
from focusdpo.flows.config import TrainRun
from focusdpo.flows.fit.demand import demand_of, fitting_settings, footprint
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.flows.settings import preset_names

pytestmark = pytest.mark.slow
GIB = 2**30
PRESETS = [name for name in preset_names() if name not in ("pocket", "demo", "study")]


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = write_cache(tmp_path_factory.mktemp("hub"))
    patch = pytest.MonkeyPatch()
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    yield cache
    patch.undo()


def run_of(preset: str) -> tuple[TrainRun, ModelsConfig]:
    run = TrainRun(preset=preset, root="root", out="out")
    assert run.models is not None
    return run, run.models


@pytest.mark.parametrize("preset", PRESETS)
def test_every_checkpoint_fits_its_role(preset: str) -> None:
    _, models = run_of(preset)
    rows = dict(checks(models))
    assert len(rows) > 10
    for name, check in rows.items():
        if not name.endswith("quantise"):  # needs a GPU
            assert check(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_what_would_be_downloaded_is_what_the_public_files_measure(preset: str) -> None:
    plan = fetch(FetchRun(preset=preset), plan=True)
    _, models = run_of(preset)
    names = {f: name.partition("@")[0] for f, name in _sources(models)}
    assert plan["missing"] == 0
    for field, size in plan["plan"].items():
        assert size["total"] == pytest.approx(PUBLIC_BYTES[names[field]], rel=0.02), field


def _sources(models: ModelsConfig) -> Iterator[tuple[str, str]]:
    from focusdpo.flows.checkpoint_suite import sources

    for field, source, _ in sources(models):
        yield field, source


def test_sdxl_without_a_variant_downloads_its_plain_files_alone() -> None:
    _, models = run_of("sdxl-ip-adapter")
    plain = models.backbone.model_copy(update={"variant": None})
    run = FetchRun.model_validate(
        {"preset": "sdxl-ip-adapter", "models": {"backbone": plain.model_dump()}}
    )
    plan = fetch(run, plan=True)["plan"]
    assert plan["models.backbone.base"]["total"] == pytest.approx(13.88e9, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "command", "gib"),
    [
        ("flux-uno", "train", (35, 42)),  # 31.6 of weights, 1.1 of policy
        ("flux-uno", "build-dataset", (33, 40)),
        ("flux-uno-24gb", "train", (13, 23)),
        ("flux-uno-24gb", "build-dataset", (13, 23)),
        ("flux-uno-24gb", "evaluate", (13, 23)),
        ("sdxl-ip-adapter-24gb", "build-dataset", (8, 23)),
        ("sdxl-ip-adapter-24gb", "train", (8, 23)),
        ("flux2-klein-24gb", "build-dataset", (10, 23)),
        ("flux2-klein-24gb", "train", (10, 23)),
    ],
)
def test_a_command_takes_what_its_models_and_passes_take(
    preset: str, command: str, gib: tuple[int, int]
) -> None:
    run, models = run_of(preset)
    demand = demand_of(command, models, run.train)  # type: ignore[arg-type]
    assert gib[0] < demand.device / GIB < gib[1], demand


def test_flux_on_24_gib_is_told_what_makes_it_fit() -> None:
    run, models = run_of("flux-uno")
    found = fitting_settings("train", models, run.train, 23.5 * GIB)
    assert found is not None and found["models.backbone.quantise"] in ("8bit", "4bit")
    assert found["models.backbone.offload"] is True
    assert fitting_settings("train", models, run.train, 4 * GIB) is None
    demand = demand_of("train", models, run.train)
    assert demand.host / GIB > 22  # the transformer, while it is read


def test_the_policys_weights_are_counted_from_headers() -> None:
    """As docs/multi_gpu.md says: 608 tensors of FLUX.1-dev at rank 32. And the matrices, all and of
    the largest block, that a LoKr makes beside the base's."""
    counted = {
        "flux-uno": (74.7, 4303, 75.5),
        "sdxl-ip-adapter": (60.9, 1296, 20.3),
        "flux2-klein": (42.8, 3256, 160.4),
    }
    for preset, (millions, covered, block) in counted.items():
        own = footprint(run_of(preset)[1])
        assert own is not None and own.lora * 32 / 1e6 == pytest.approx(millions, abs=0.1)
        numbers = own.covered / 1e6, own.covered_block / 1e6
        assert numbers == pytest.approx((covered, block), rel=0.01)
