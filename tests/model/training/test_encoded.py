"""Encoded once: what models are asked for in a run and in the next, where it lies, and that none of
it shows in the weights."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_suite
import torch
from pair_samples import make_sample, write_pairs, write_shard
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, Interrupted, stop_at, table_rows
from torch import Tensor

from focusdpo.flows.models_config import PARTS
from focusdpo.flows.settings import load_preset
from focusdpo.model.adapter import WEIGHTS
from focusdpo.model.backbones.offload import Deferred
from focusdpo.model.objectives import Loss
from focusdpo.model.step import StepOutput
from focusdpo.model.training import encoded, steps
from focusdpo.model.training.batches import PairBatch, PairData
from focusdpo.model.training.config import TrainConfig, digest
from focusdpo.model.training.encoded import EncodedFolder, Encodings, Entry, key_of
from focusdpo.model.training.parallel import Processes
from focusdpo.model.training.run import train
from focusdpo.model.training.run_state import RunState
from focusdpo.model.training.steps import ReferenceErrors, Stepper
from focusdpo.store.samples import Sample

ENTRY = Entry({"latents": torch.arange(256.0)})
ENTRY_BYTES = 1024 + 300


class Asked:
    """What encoders were asked for: pictures by their content, and texts by their ids."""

    def __init__(self) -> None:
        self.pictures: Counter[bytes] = Counter()
        self.texts: Counter[bytes] = Counter()

    def take(self) -> tuple[Counter[bytes], Counter[bytes]]:
        taken = self.pictures, self.texts
        self.__init__()  # type: ignore[misc]
        return taken


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Counts inside the packages' own models, whatever stands before them."""
    import diffusers
    import transformers

    seen = Asked()

    def counting(owner: Any, name: str, counter: str, argument: str) -> None:
        real = getattr(owner, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = kwargs[argument] if argument in kwargs else args[0]
            for row in given:
                getattr(seen, counter)[row.cpu().float().numpy().tobytes()] += 1
            return real(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for kind in (diffusers.AutoencoderKL, diffusers.AutoencoderKLFlux2):
        counting(kind, "encode", "pictures", "x")
    counting(transformers.T5EncoderModel, "forward", "texts", "input_ids")
    counting(transformers.Qwen3Model, "forward", "texts", "input_ids")
    counting(transformers.CLIPTextModelWithProjection, "forward", "texts", "input_ids")
    return seen


def preset_settings(kind: str, steps: int) -> TrainConfig:
    """A shipped preset's own training settings, for a few steps on a tiny transformer."""
    tree = dict(load_preset(kind)["train"])
    tree |= {"steps": steps, "warmup": 0, "tensorboard": False, "mixed_precision": "no"}
    tree |= {"batch_pairs": 4, "lora": {"rank": 2, "alpha": 2}}
    return TrainConfig.model_validate(tree)


@pytest.mark.parametrize("kind", tiny_suite.KINDS)
@pytest.mark.slow
def test_each_preset_encodes_once_in_a_run_and_not_at_all_in_the_next(
    kind: str, tmp_path: Path, asked: Asked
) -> None:
    config = tiny_suite.backbone_config(kind, tmp_path)
    module: Any = importlib.import_module(PARTS["backbone"].module(kind))
    samples = write_pairs(tmp_path / "root")
    settings, folder = preset_settings(kind, 3), tmp_path / "encoded"
    build = lambda: module.build(config, "cpu")  # noqa: E731
    train(build(), samples, settings, tmp_path / "first", encoded=folder)
    pictures, texts = asked.take()
    assert pictures and set(pictures.values()) == {1}
    # UNO shows a reference in another size beside a second one, so it is another picture.
    assert len(texts) == len({sample.row.prompt for sample in samples})
    assert set(texts.values()) == {1}

    backbone = build()
    train(backbone, samples, settings, tmp_path / "second", encoded=folder)
    assert asked.take() == (Counter(), Counter())
    deferred = [part for owner in owners(backbone) for part in vars(owner).values()]
    waiting = [part for part in deferred if isinstance(part, Deferred)]
    assert len(waiting) >= 2 and not any(part._loaded for part in waiting)
    for name in (f"adapter/{WEIGHTS}", "focus.safetensors"):
        first, second = (tmp_path / run / name for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def owners(backbone: Any) -> Iterator[Any]:
    """The backbone, and what of it may hold an encoder."""
    yield backbone
    yield backbone.codec
    yield getattr(backbone, "_encode_prompts", backbone)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS | {"tensorboard": False} | changes)


@pytest.fixture(scope="module")
def straight(pair_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps nothing: every batch is encoded when it is wanted."""
    run = tmp_path_factory.mktemp("straight")
    train(tiny_backbone(), pair_samples, settings(cache_mib=0), run)
    return run


def left(run: Path) -> tuple[Any, ...]:
    return (run / "adapter" / WEIGHTS).read_bytes(), table_rows(run)


@pytest.mark.parametrize("disk", ["none", "cold", "some", "damaged", "tiny"])
def test_where_encodings_lie_shows_nowhere(
    pair_samples: list[Sample], straight: Path, tmp_path: Path, disk: str
) -> None:
    """All of it kept in memory, on disk, a part of it there already, damaged there, no room."""
    folder = tmp_path / "encoded"
    if disk in ("some", "damaged"):
        keep = EncodedFolder(folder, encoder_of(tiny_backbone()), 2**30)
        few = PairData(
            tiny_backbone(), pair_samples[:3], encodings=Encodings(tiny_backbone(), 0, keep)
        )
        few.encode()
    if disk == "damaged":
        for file in sorted(folder.glob("*/*"))[::2]:
            file.write_bytes(file.read_bytes()[:100])
    changes = {"cache_mib": 64} if disk == "none" else {"cache_mib": 0}
    limit = 2**16 / 2**30 if disk == "tiny" else 1
    config = settings(**changes, encoded={"gib": limit})
    train(
        tiny_backbone(), pair_samples, config, tmp_path / "run",
        encoded=None if disk == "none" else folder,
    )  # fmt: skip
    assert left(tmp_path / "run") == left(straight)
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert taken <= limit * 2**30


def test_a_run_goes_on_with_another_cache(
    pair_samples: list[Sample], straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        config = settings(cache_mib=0, save_every=4)
        train(tiny_backbone(), pair_samples, config, tmp_path / "run", progress=stop_at(6))
    more = settings(cache_mib=64, save_every=4)
    done = train(
        tiny_backbone(), pair_samples, more, tmp_path / "run", encoded=tmp_path / "encoded"
    )
    assert done.resumed_from == 4
    assert left(tmp_path / "run") == left(straight)


def encoder_of(backbone: Any) -> str:
    return digest(backbone.fingerprint)


def test_entries_of_another_encoder_are_told_of_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    EncodedFolder(tmp_path, "other", 2**20).write("a", ENTRY)
    with caplog.at_level(logging.WARNING):
        folder = EncodedFolder(tmp_path, "mine", 2**20)
    assert folder.read("a") is None and "a" not in folder
    assert "of other encoders" in caplog.text and str(tmp_path) in caplog.text


def test_what_no_run_uses_goes_first(tmp_path: Path) -> None:
    limit = 4 * ENTRY_BYTES
    old = EncodedFolder(tmp_path, "other", limit)
    for at, key in enumerate("abc"):
        assert old.write(key, ENTRY)
        os.utime(tmp_path / "other" / f"{key}.safetensors", (at, at))
    mine = EncodedFolder(tmp_path, "mine", limit)
    assert all(mine.write(key, ENTRY) for key in "de")
    kept = sorted(file.stem for file in tmp_path.glob("*/*"))
    assert kept == ["b", "c", "d", "e"] or kept == ["c", "d", "e"]
    assert all(mine.write(key, ENTRY) for key in "fg")
    assert not mine.write("h", ENTRY), "what this run wants stays"
    assert sorted(file.stem for file in tmp_path.glob("*/*")) == ["d", "e", "f", "g"]


def test_a_full_disk_ends_the_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = EncodedFolder(tmp_path, "mine", 2**20)
    assert folder.write("a", ENTRY)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoded.os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert not folder.write("b", ENTRY) and not folder.write("c", ENTRY)
    assert caplog.text.count("no room for more (No space left on device)") == 1
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["a.safetensors"]
    found = folder.read("a")
    assert found is not None and torch.equal(found.tensors["latents"], ENTRY.tensors["latents"])


def test_keys_are_of_content() -> None:
    one, other = make_sample(0, 2).images, make_sample(1, 2).images
    assert key_of("picture", one.win) == key_of("picture", one.win.copy())
    keys = [
        key_of("picture", one.win),
        key_of("picture", other.win),
        key_of("picture", one.win.reshape(128, 32, 3)),
        key_of("reference", 1, one.references[0], one.reference_masks[0]),
        key_of("reference", 2, one.references[0], one.reference_masks[0]),
        key_of("prompt", "a cat"),
        key_of("prompt", "a cat "),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
@pytest.mark.alone
def test_data_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1,024 px with nothing kept in memory, beside passes of 300 ms."""
    samples = write_shard(
        tmp_path / "root", "big.tar", [enlarged(make_sample(i, 2), 16) for i in range(2)]
    )
    backbone = tiny_backbone(image_size=(1024, 1024))
    config = settings(steps=13, batch_pairs=1, objective={"name": "dpo"})

    def slow(_: Any, batch: PairBatch, noise: Any, sigma_B: Tensor, *__: Any, **___: Any) -> Any:
        time.sleep(0.3)
        error_BN = torch.zeros(2 * len(batch), batch.win_BNC.shape[1])
        return StepOutput(
            Loss(torch.zeros(()), 0 * sigma_B), sigma_B, error_BN, error_BN, None, None
        )

    monkeypatch.setattr(steps, "backward_step", slow)
    folder = EncodedFolder(tmp_path / "encoded", encoder_of(backbone), 2**30)
    data = PairData(backbone, samples, encodings=Encodings(backbone, 0, folder))
    data.encode()
    state, processes = RunState(backbone, config), Processes(torch.device("cpu"))
    known = ReferenceErrors(0).of("", "", config)
    with Stepper(backbone, data, config, state, processes, known, lambda: "") as stepper:
        stepper.take()
        ratios = []
        for _ in range(3):  # others may use this machine: its best is what it can do
            start = time.perf_counter()
            scalars = [stepper.take()[2] for _ in range(4)]
            loop = time.perf_counter() - start
            spent = sum(one["seconds"] - one["data_seconds"] for one in scalars)
            assert spent >= 4 * 0.3
            ratios.append(loop / spent)
    assert min(ratios) <= 1.03, ratios


def enlarged(sample: Any, times: int) -> Any:
    """The sample with every picture `times` as large."""

    def grown(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(grown, value))
        return value.repeat(times, 0).repeat(times, 1)

    images = sample.images
    large = {field.name: grown(getattr(images, field.name)) for field in fields(images)}
    return replace(sample, images=replace(images, **large))
