"""The recipes: exact resume, what they draw, and that they run to their end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.classes import class_names
from focusdpo.pocket.fitting.recipe import is_done, on_machine
from focusdpo.pocket.fitting.training import Stage, Training, fit
from focusdpo.pocket.models.generator import build_generator, load_model
from focusdpo.pocket.models.segmenter import SegmentConfig, claims
from focusdpo.pocket.recipes import autoencoder_recipe as autoencoder
from focusdpo.pocket.recipes import generator_recipe as generator
from focusdpo.pocket.recipes import table
from focusdpo.pocket.recipes.drawn import drawn
from focusdpo.pocket.recipes.flow_batches import TOKEN, FlowConfig, draw_batch, layout_of, places
from focusdpo.pocket.recipes.scorer_samples import lookalikes
from focusdpo.pocket.weightfiles import save_weights
from focusdpo.pocket.world.casting import draw_cast
from focusdpo.pocket.world.world import SCENE_SIZE, render_scenes

TINY = {
    "patch_size": 1, "in_channels": 48, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
    "pooled_projection_dim": 32, "guidance_embeds": False, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip


class Interrupted(Exception):
    pass


def small(config: BaseModel, **changes: Any) -> Any:
    """A recipe of two steps a stage."""
    short = {"steps": 2, "batch": 4, "compile": False, "recalibrate": 1, "log_every": 1}
    for name, value in config:
        if isinstance(value, Training):
            changes[name] = value.model_copy(update=short)
    return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder in it whose decoder saw little."""
    folder = tmp_path_factory.mktemp("recipes")
    config = small(autoencoder.AutoencoderRecipe(), fit_batches=1)
    table.train("autoencoder", config, folder)
    assert is_done(autoencoder.RECIPE, config, folder)
    assert is_done(autoencoder.RECIPE, on_machine(config, workers=2, threads=2), folder)
    assert not is_done(autoencoder.RECIPE, autoencoder.AutoencoderRecipe(), folder)
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_training_is_the_unbroken_one(optimizer: str, tmp_path: Path) -> None:
    training = Training(steps=9, optimizer=optimizer, warmup=2, save_minutes=1e-9, seed=3)  # type: ignore[arg-type]

    def model() -> nn.Module:
        torch.manual_seed(1)
        blocks = nn.ModuleDict({"transformer_blocks": nn.Linear(6, 6), "end": nn.Linear(6, 1)})
        blocks["batch_norm"] = nn.BatchNorm1d(6)
        return blocks

    def stage(module: Any, stop: int = 10**6, workers: int = 0) -> Stage:
        def draw(step: int) -> Tensor:
            if step == stop:
                raise Interrupted
            return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))

        def loss(x: Tensor) -> Tensor:
            hidden = module["batch_norm"](module["transformer_blocks"](x))
            return module["end"](hidden).sub(x[:, :1]).square().mean()

        ahead = training.model_copy(update={"workers": workers})
        return Stage("stage", module, draw, loss, ahead)

    whole, broken = model(), model()
    fit(stage(whole), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(stage(broken, stop=4), tmp_path / "broken")
    resumed = model()
    trained = fit(stage(resumed), tmp_path / "broken")
    assert trained.steps == 9
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    again, ahead = model(), model()
    fit(stage(again), tmp_path / "whole")
    fit(stage(ahead, workers=2), tmp_path / "ahead")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, ahead.state_dict()[name]), name


def test_a_longer_run_goes_on_before_the_cooldown_and_not_after(tmp_path: Path) -> None:
    def stage(steps: int, stop: int, lr: float = 1e-3) -> Stage:
        module = nn.Linear(2, 1)

        def draw(step: int) -> Tensor:
            if step == stop:
                raise Interrupted
            return torch.ones(1, 2)

        training = Training(steps=steps, cooldown=0.5, save_minutes=1e-9, lr=lr)
        return Stage("stage", module, draw, lambda x: module(x).square().sum(), training)

    with pytest.raises(Interrupted):
        fit(stage(10, stop=4), tmp_path)
    with pytest.raises(Interrupted):
        fit(stage(20, stop=12), tmp_path)
    with pytest.raises(UserError, match="other settings"):
        fit(stage(40, stop=13), tmp_path)
    with pytest.raises(UserError, match="other settings"):
        fit(stage(20, stop=13, lr=1.0), tmp_path)


def test_rates_rise_hold_and_fall() -> None:
    training = Training(steps=100, lr=1.0, warmup=9, cooldown=0.4)
    rates = [training.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[60] == 1
    assert rates[80] == pytest.approx(0.5)
    assert min(rates[10:]) >= 0.01


@pytest.mark.slow
def test_the_generator_runs_from_random_weights_to_its_samples(root: Path) -> None:
    config = small(generator.GeneratorRecipe(), architecture=TINY, layout_block=0)
    assert table.train("generator", config, root) == []
    assert (root / "weights" / "generator_samples.png").stat().st_size > 10_000
    card = (root / "weights" / "generator.md").read_text()
    assert "8 small pictures" in card and "96 x 96" in card
    assert is_done(generator.RECIPE, config, root)


def test_the_layout_is_where_the_subjects_stand() -> None:
    """Token by token, by counting pixels."""
    rng = np.random.default_rng(3)
    names = class_names("train")
    casts = [draw_cast("train", names, 2, rng) for _ in range(3)]
    scenes = render_scenes(casts, [5, 6, 7])
    words = [[subject.class_name for subject in cast] for cast in casts]
    told = layout_of(scenes, words)
    side = SCENE_SIZE // TOKEN
    counted = 0
    for b, n in itertools.product(range(3), range(side * side)):
        y, x = divmod(n, side)
        cell = scenes.masks[b, :, y * TOKEN : (y + 1) * TOKEN, x * TOKEN : (x + 1) * TOKEN]
        share = cell.float().mean((1, 2))
        owner = int(share.argmax())
        if share[owner] <= 0.5:
            assert told.kind[b, n] == 0 and told.offset[b, n].tolist() == [0, 0]
            continue
        counted += 1
        assert told.kind[b, n] == 1 + names.index(words[b][owner])
        x0, y0, x1, y1 = scenes.boxes[b, owner].tolist()
        half = max(x1 - x0, y1 - y0) / 2
        apart = [
            ((x + 0.5) * TOKEN - (x0 + x1) / 2) / half,
            ((y + 0.5) * TOKEN - (y0 + y1) / 2) / half,
        ]
        assert told.offset[b, n].tolist() == pytest.approx(apart, abs=1e-5)
    assert counted > 60


def test_the_layouts_error_reaches_the_blocks_before_it_alone(root: Path) -> None:
    """And the published weights are those of a generator without the second task's layer."""
    config = small(
        generator.GeneratorRecipe(), architecture=TINY | {"num_single_layers": 2}, layout_block=0
    )
    model = generator.build(config, root / "weights")
    stage = generator.stages(config, model, root / "weights")[-1]
    assert stage.name == "unordered" and stage.publish is not None
    batch = stage.draw(0)
    with generator.seen_at(model, 0) as seen:
        velocity = generator.forward(model, batch)
    told = stage.module["layout"](seen[0][:, : velocity.shape[1]])  # type: ignore[index]
    generator.layout_loss(told, batch).backward()
    blocks: Any = model["transformer"].single_transformer_blocks
    assert all(p.grad is not None for p in blocks[0].parameters())
    assert all(p.grad is None for p in blocks[1].parameters())
    perfect = torch.zeros_like(told)
    perfect.scatter_(-1, batch.layout.kind[..., None], 50.0)
    perfect[..., -2:] = batch.layout.offset
    assert float(generator.layout_loss(perfect, batch)) == pytest.approx(0, abs=1e-6)
    stage.publish(stage.module.state_dict())
    load_model(root / "weights")


def test_an_interrupted_generator_goes_on_bitwise(root: Path) -> None:
    config = small(generator.GeneratorRecipe(), architecture=TINY, layout_block=0)
    training = config.small_training.model_copy(update={"steps": 4, "save_minutes": 1e-9})
    config = config.model_copy(update={"small_training": training})

    def first_stage(stop: int | None = None) -> Stage:
        torch.manual_seed(5)
        stage = generator.stages(config, build_generator(TINY), root / "weights")[0]

        def draw(step: int) -> Any:
            if step == stop:
                raise Interrupted
            return stage.draw(step)

        return replace(stage, draw=draw, publish=None)

    whole = first_stage()
    fit(whole, root / "whole")
    with pytest.raises(Interrupted):
        fit(first_stage(stop=2), root / "broken")
    resumed = first_stage()
    fit(resumed, root / "broken")
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_a_batch_is_a_function_of_its_step(root: Path) -> None:
    from focusdpo.pocket.models.autoencoder import load_autoencoder

    codec = load_autoencoder(root / "weights")
    config = FlowConfig(subjects=(0.0, 0.0, 1.0, 0.0), drop_references=0.0)
    first, again, other = (draw_batch(codec, config, 3, 7, step) for step in (5, 5, 6))
    assert torch.equal(first.target, again.target) and torch.equal(first.noise, again.noise)
    assert not torch.equal(first.target, other.target)
    assert first.target.shape == (3, 144, 48)
    assert first.references is not None and first.references.shape == (3, 75, 48)
    assert first.places.shape == (219, 3)
    torch.testing.assert_close(first.weight.mean(1), torch.ones(3))


def test_a_small_picture_stands_anywhere_and_its_reference_where_it_always_does() -> None:
    rng = np.random.default_rng(0)
    seen = torch.stack([places(48, 1, rng) for _ in range(200)])
    corners = seen[:, 0, 1:]
    assert corners.min() == 0 and corners.max() == 6
    assert (seen[:, 36:] == places(96, 1, rng)[144:]).all()


def test_lookalikes_differ_in_one_thing() -> None:
    people = lookalikes(["cat", "bell", "key"], "train", 20, 3)
    assert {subject.split for subject in people} == {"train"}
    same_class = [people[4 * k].class_name == people[4 * k + 1].class_name for k in range(20)]
    same_looks = [people[4 * k].hue == people[4 * k + 3].hue for k in range(20)]
    assert np.mean(same_class) > 0.9 and np.mean(same_looks) > 0.7


def test_object_never_takes_a_place_from_a_known_word() -> None:
    index = {"cat": 0, "bell": 1, "key": 2}
    sure = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], np.float32)
    config = SegmentConfig()
    both = claims(sure, ["cat", "object"], index, config)
    assert both[0, 0] > 0.5 and both[0, 1] == 0
    assert both[1, 1] > 0.5 and both[1, 0] < 0.25
    # A body that the word fits badly is still its best one: `object` leaves it.
    doubtful = claims(sure[1:], ["cat", "zebra"], index, config)
    assert doubtful[1, 1] == 0
    assert (claims(sure, ["object"], index, config) == 1).all()
    assert claims(sure[:0], ["cat", "object"], index, config).shape == (0, 2)


def test_unknown_models_are_named() -> None:
    with pytest.raises(UserError, match="there are autoencoder"):
        table.recipe_of("oracle")


def test_weights_of_another_vocabulary_are_refused(root: Path, tmp_path: Path) -> None:
    settings = {"transformer": TINY, "words": ["cat"]}
    save_weights("generator", build_generator(TINY), settings, tmp_path)
    with pytest.raises(UserError, match="another vocabulary"):
        load_model(tmp_path)


def test_the_judge_and_the_scorers_draw_apart() -> None:
    """Beginnings of all trainings: nobody is shown to judge and scorers both, nobody is held
    out."""
    people: dict[str, frozenset[Any]] = {}
    for name in ("segmenter", "identity", "clip", "judge"):
        recipe = table.recipe_of(name)
        assert recipe.lineage is not None
        streams = recipe.lineage(recipe.config()).streams
        first = tuple(
            each.model_copy(update={"end_batch_seed": each.first_batch_seed + 3})
            for each in streams
        )
        people[name] = drawn(first).individuals
        assert {subject.split for subject in people[name]} == {"train"}
    scorers = people["segmenter"] | people["identity"] | people["clip"]
    assert not scorers & people["judge"]


@pytest.mark.parametrize("name", ["segmenter", "identity", "judge", "clip"])
def test_every_stage_of_a_scorer_learns_from_its_batch(name: str, tmp_path: Path) -> None:
    recipe = table.recipe_of(name)
    config = small(recipe.config())
    torch.manual_seed(0)
    if name == "clip":  # starts from a segmenter's region network
        segmenter = table.recipe_of("segmenter")
        start = segmenter.build(segmenter.config(), tmp_path)
        save_weights("segmenter", start, {}, tmp_path)
    model = recipe.build(config, tmp_path)
    for stage in recipe.stages(config, model, tmp_path):
        stage.module.train()
        loss = stage.loss(stage.draw(0))
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [p.grad for p in stage.module.parameters() if p.requires_grad]
        assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > 2
