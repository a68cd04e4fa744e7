"""Whether a command fits a machine, on small checkpoints: what is told, and with what it would."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_process
import pytest
import tiny_suite

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import checkpoint_suite
from focusdpo.flows.build.plan import model_of
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.fit import demand as demands
from focusdpo.flows.fit import supply
from focusdpo.flows.fit.demand import LESS, demand_of, fitting_settings, train_demand
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.flows.wiring import Parts
from focusdpo.model.training.config import TrainConfig
from focusdpo.pipeline.stage import roles_in

GIB = 2**30
KINDS = tiny_suite.KINDS


@pytest.fixture(scope="module", params=KINDS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ModelsConfig.model_validate(
        tiny_suite.models(request.param, tmp_path_factory.mktemp(request.param))
    )


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what does not depend on the models: their own bytes are a millionth of it."""
    monkeypatch.setattr(demands, "CONTEXT", 0)


def test_each_setting_that_is_advised_saves_memory(models: ModelsConfig, bare: None) -> None:
    train = TrainConfig(batch_pairs=8)
    for command in LESS:
        whole = demand_of(command, models, train).device
        least = whole
        for name, value in LESS[command]:
            changed = demands._with(models, train, name, value)
            if changed is not None:
                least = min(least, demand_of(command, *changed).device)
        found = fitting_settings(command, models, train, least * 1.0001)
        assert found, command
        assert fitting_settings(command, models, train, whole) == {}
        assert fitting_settings(command, models, train, 0) is None


def test_a_filter_counts_where_one_is_named(models: ModelsConfig) -> None:
    """In what is fetched, looked at, planned and used; without one nothing knows of it."""
    without = models.model_copy(update={"safety": None})
    source, stage = models.safety.source, STAGES["score"]
    for one, there in ((models, True), (without, False)):
        assert (source in [name for _, name, _ in checkpoint_suite.sources(one)]) is there
        rows = [name for name, _ in checkpoint_suite.checks(one)]
        assert ("safety: image-classifier" in rows) is there
        parts = Parts(one)
        assert stage.used(parts) == (*stage.roles, *(("safety",) if there else ()))
        assert (parts.safety is not None) is there
        assert roles_in("score", model_of(stage, parts)) == stage.used(parts)
        assert demands.build_demand(one).device > 0
    scoring = {"identity", "clip", "safety"}
    weights = demands._together("build-dataset", models, "score", scoring).parts
    assert weights["safety"] == demands.weights_of(models, "safety") > 0
    assert model_of(stage, Parts(without)) in model_of(stage, Parts(models))
    again = ModelsConfig.model_validate(models.model_dump(mode="json"))
    assert again == models and ModelsConfig.model_validate(without.model_dump()).safety is None


def test_a_pass_of_less_takes_less(models: ModelsConfig, bare: None) -> None:
    def at_work(**train: Any) -> float:
        config = TrainConfig.model_validate({"batch_pairs": 8} | train)
        own = demands.footprint(models)
        assert own is not None
        pairs = config.micro_pairs or config.batch_pairs
        whole = own.activations(
            pairs,
            checkpointing=config.gradient_checkpointing,
            sequential=config.memory == "sequential",
        )
        return whole - own.beside

    assert at_work(micro_pairs=1) == pytest.approx(at_work() / 8)
    assert at_work(gradient_checkpointing=True) < at_work(memory="sequential") < at_work()
    more = demands.footprint(models, references=3)
    assert more is not None
    ranks = [
        train_demand(models, TrainConfig.model_validate({"lora": {"rank": r}})) for r in (4, 8)
    ]
    plain, dora = (  # of so many pairs that the autoencoder is not what takes most
        train_demand(
            models, TrainConfig.model_validate({"batch_pairs": 4096, "lora": {"kind": kind}})
        )
        for kind in ("lora", "dora")
    )
    assert dora.parts["at work"] > plain.parts["at work"]
    assert ranks[1].parts["policy and optimiser"] == 2 * ranks[0].parts["policy and optimiser"]


def test_a_machine_without_room_is_refused_before_anything_is_loaded(
    models: ModelsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = supply.Machine("cuda", 0.5 * GIB, 24 * GIB, 64 * GIB, 64 * GIB, 64 * GIB)
    monkeypatch.setattr(supply, "this_machine", lambda device: small)
    monkeypatch.setattr(checkpoint_suite, "_LOADED", {})
    with pytest.raises(
        UserError, match=r"train: \d\.\d GiB in a pass of 1 pairs, and cuda has 0\.5"
    ):
        supply.require_fit("train", models, TrainConfig(batch_pairs=1))
    # A build has found masks of photographs by then; only a backbone's room has been looked for.
    monkeypatch.setattr(checkpoint_suite, "_LOADED", {(models, "segmenter"): None})
    with pytest.raises(UserError, match=r"build-dataset: \d\.\d GiB in stage"):
        supply.require_fit("build-dataset", models)
    monkeypatch.setattr(checkpoint_suite, "_LOADED", {(models, "backbone"): None})
    supply.require_fit("build-dataset", models)
    monkeypatch.setattr(checkpoint_suite, "_LOADED", {})
    lacking = replace(small, device_free=24 * GIB, host_free=GIB)
    monkeypatch.setattr(supply, "this_machine", lambda device: lacking)
    with pytest.raises(UserError, match=r"GiB of main memory while weights are read"):
        supply.require_fit("build-dataset", models)
    plenty = replace(small, device_free=24 * GIB)
    monkeypatch.setattr(supply, "this_machine", lambda device: plenty)
    supply.require_fit("evaluate", models)
    supply.require_fit("train", "pocket")


def test_downloads_need_room_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from focusdpo.store.checkpoints import Download

    one = supply.Source("models.x", "a/b", None, Download(40 * 10**9, 30 * 10**9))
    monkeypatch.setattr(supply, "cache_room", lambda: (tmp_path, 29e9))
    with pytest.raises(UserError, match=r"30\.0 GB to download, and .* has 29\.0 GB free"):
        supply.require_room([one])
    monkeypatch.setattr(supply, "downloads", lambda models: [one])
    code, _, said = in_process.run(["fetch", "--preset", "flux-uno"], capsys)
    assert code == 2 and "29.0 GB free; make room" in said
    monkeypatch.setattr(supply, "cache_room", lambda: (tmp_path, 31e9))
    supply.require_room([one])


@pytest.mark.slow
def test_parts_of_another_stage_are_freed(models: ModelsConfig) -> None:
    """As on Ray: a build's models need not fit side by side."""
    parts = Parts(models)
    resident = parts._residents
    painter = resident["generator"].part
    transformer = weakref.ref(painter.part.backbone.transformer)
    assert resident["segmenter"].part is not None
    segmenter = weakref.ref(checkpoint_suite._LOADED[models, "segmenter"])
    del painter
    parts.keep_only(("segmenter", "identity"))
    gc.collect()
    assert transformer() is None and segmenter() is not None
    parts.keep_only(("inpainter",))
    gc.collect()
    assert segmenter() is None
    assert resident["inpainter"].part is not None  # the backbone comes again, for swaps
    assert "inpainter" in checkpoint_suite.loaded_roles(models)
    parts.keep_only(())
    assert not checkpoint_suite.loaded_roles(models)
