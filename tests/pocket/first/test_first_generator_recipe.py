"""The generator's recipe on a corpus of a few scenes, with the real model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focusdpo.pocket.first.recipes import generator as recipe
from focusdpo.pocket.first.recipes.common import learning_rate
from focusdpo.pocket.first.recipes.corpus import PATTERN, make_chunk, read_chunk, write_corpus
from focusdpo.pocket.first.recipes.flow_batches import Batch, draw_batch
from focusdpo.pocket.first.recipes.generator import GeneratorConfig, flow_loss
from focusdpo.pocket.first.vocabulary import LENGTH, OBJECT, words
from focusdpo.pocket.models.autoencoder import PatchAutoencoder, build_autoencoder

SCENES = 6
CONFIG = GeneratorConfig(
    steps=4, minutes=0, batch=3, chunks=3, chunk_scenes=SCENES, first_chunks=3, warmup=1
)


@pytest.fixture(scope="module")
def codec() -> PatchAutoencoder:
    model = build_autoencoder()
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model.fit([images])
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def corpus(codec: PatchAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "corpus"
    write_corpus(codec, folder, CONFIG.seed, CONFIG.chunks, SCENES)
    return folder


def test_a_chunk_depends_on_seed_and_index_alone(codec: PatchAutoencoder, corpus: Path) -> None:
    for index in range(CONFIG.chunks):
        stored = read_chunk(corpus / f"chunk-{index:04d}.safetensors")
        again = make_chunk(codec, CONFIG.seed, index, SCENES)
        assert stored.subjects == PATTERN[index]
        assert torch.equal(stored.target, again.target.half())
        assert torch.equal(stored.references, again.references.half())
        assert torch.equal(stored.classes, again.classes)
        assert stored.target.shape == (SCENES, 64, 64)
        assert stored.references.shape == (SCENES, PATTERN[index], 16, 64)
    other = make_chunk(codec, CONFIG.seed + 1, 0, SCENES)
    assert not torch.equal(
        other.target.half(), read_chunk(corpus / "chunk-0000.safetensors").target
    )


def test_a_batch_depends_on_the_step_alone(corpus: Path) -> None:
    first, again, next_ = (draw_batch(CONFIG, corpus, step) for step in (5, 5, 6))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.target, again.target) and torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.noise, next_.noise)


def test_dropout_shares_are_those_of_the_config(corpus: Path) -> None:
    config = CONFIG.model_copy(update={"drop_references": 0.3, "anonymous": 0.5, "batch": SCENES})
    batches = [draw_batch(config, corpus, step) for step in range(300)]
    bare = sum(batch.references is None for batch in batches) / len(batches)
    assert bare == pytest.approx(0.3, abs=0.1)
    told = [batch for batch in batches if batch.references is not None]
    empty = torch.cat([(batch.tokens == 0).all(1) for batch in told]).float().mean()
    assert empty == pytest.approx(config.drop_prompt, abs=0.04)
    ids = torch.cat([batch.tokens for batch in batches])
    anonymous = (ids == words().index(OBJECT)).sum() / (ids == words().index("a")).sum()
    assert anonymous == pytest.approx(0.4, abs=0.05)  # a fifth of the half becomes <unk>


def test_loss_weighs_tokens_and_is_the_velocitys_error() -> None:
    target, noise = torch.randn(2, 64, 64), torch.randn(2, 64, 64)
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    flat = Batch(target, None, torch.ones(2, 64), tokens, torch.rand(2), noise)
    assert flow_loss(noise - target, flat) == 0
    velocity = torch.randn(2, 64, 64)
    plain = torch.nn.functional.mse_loss(velocity, noise - target)
    torch.testing.assert_close(flow_loss(velocity, flat), plain)


def test_batches_weights_have_mean_one(corpus: Path) -> None:
    batch = draw_batch(CONFIG, corpus, 0)
    torch.testing.assert_close(batch.weight.mean(1), torch.ones(CONFIG.batch))
    assert batch.weight.min() > 0 and batch.weight.max() > 1


def test_a_stopped_run_resumes_to_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"checkpoint_minutes": 1e-9})
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus").symlink_to(corpus)
    recipe.fit(config, tmp_path / "whole")

    def draw_until_stopped(config: GeneratorConfig, corpus: Path, step: int) -> Batch:
        if step == 2:
            raise KeyboardInterrupt
        return draw_batch(config, corpus, step)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "draw_batch", draw_until_stopped)
        with pytest.raises(KeyboardInterrupt):
            recipe.fit(config, tmp_path / "stopped")
    clock = recipe.fit(config, tmp_path / "stopped")
    assert clock.step == 4
    whole = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    resumed = load_file(tmp_path / "stopped" / "checkpoint.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    assert learning_rate(1.0, 0, 10, 0.0) == pytest.approx(0.1)
    assert learning_rate(1.0, 20, 10, 0.25) == pytest.approx(0.75)
    assert learning_rate(1.0, 99, 10, 1.0) == pytest.approx(0.02)


def test_published_words_of_unseen_classes_are_those_of_object(tmp_path: Path) -> None:
    from focusdpo.pocket.first.generator import build_generator, load_model
    from focusdpo.pocket.first.recipes.common import Ema

    recipe.publish(Ema(build_generator(), 0.9), tmp_path)
    table = load_model(tmp_path)["prompts"].get_parameter("word.weight")
    rows = {word: table[words().index(word)] for word in (OBJECT, "owl", "rabbit", "cat")}
    assert torch.equal(rows["owl"], rows[OBJECT]) and torch.equal(rows["rabbit"], rows[OBJECT])
    assert not torch.equal(rows["cat"], rows[OBJECT])
