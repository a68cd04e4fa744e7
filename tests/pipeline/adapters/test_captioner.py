"""The vision-language captioner on a small Idefics3 in SmolVLM's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import disc, pictures, save_dino_folder
from tiny_vlm import save_qwen_folder, save_vlm_folder, teach, tiny_vlm, vlm_processor

from focusdpo.data_schemas.candidates import Instance, Sampled
from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import captioner
from focusdpo.pipeline.adapters.captioner import ClassNameConfig, VlmCaptioner, VlmConfig
from focusdpo.pipeline.describe import ClassNameCaptioner, DescribeConfig, describe
from focusdpo.pipeline.stage import mask_image

WORDS = ["cat", "backpack dog", "pot", "berry bowl", "cup"]
TAUGHT = "a fluffy red cat sleeping on a striped rug"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    processor = vlm_processor()
    return save_vlm_folder(tmp_path_factory.mktemp("vlm"), processor, tiny_vlm(processor))


def config(folder: Path, **settings: object) -> VlmConfig:
    return VlmConfig(source=str(folder), size=64, max_tokens=12, prompt="{class_name}?").model_copy(
        update=settings
    )


@pytest.fixture(scope="session")
def teller(folder: Path) -> VlmCaptioner:
    made = captioner.build(config(folder, batch=3), "cpu")
    assert isinstance(made, VlmCaptioner)
    return made


@pytest.fixture(scope="session")
def scenes() -> tuple[list[np.ndarray], list[np.ndarray]]:
    images = pictures(5)
    return images, [disc(image) for image in images]


def test_it_says_something_and_always_the_same(teller: VlmCaptioner, scenes: tuple) -> None:
    said = teller.caption(*scenes, WORDS)
    assert len(set(said)) == 5 and all(said)
    assert teller.caption(*scenes, WORDS) == said


def test_words_do_not_depend_on_the_batch(
    teller: VlmCaptioner, folder: Path, scenes: tuple
) -> None:
    """Alone, by threes and all at once, beside longer and shorter prompts."""
    said = teller.caption(*scenes, WORDS)
    for batch in (1, 5):
        other = captioner.build(config(folder, batch=batch), "cpu")
        assert other.caption(*scenes, WORDS) == said


def test_it_looks_at_the_masked_instance_only(teller: VlmCaptioner, scenes: tuple) -> None:
    images, masks = scenes
    elsewhere = [np.where(m[..., None], i, 255 - i) for i, m in zip(images, masks, strict=True)]
    assert teller.caption(elsewhere, masks, WORDS) == teller.caption(images, masks, WORDS)
    negative = [255 - image for image in images]
    assert teller.caption(negative, masks, WORDS) != teller.caption(images, masks, WORDS)


def test_answers_equal_transformers_own_greedy_generation(
    teller: VlmCaptioner, scenes: tuple
) -> None:
    images, masks = scenes
    given = teller.inputs([(images[0], masks[0], "cat")])
    tokens = given["input_ids"]
    rest = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        for _ in range(12):  # by hand, without a cache
            logits = teller.model(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), **rest
            ).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    new = tokens[0, given["input_ids"].shape[1] :]
    words = teller.processor.tokenizer.decode(new, skip_special_tokens=True)
    assert teller.caption(images[:1], masks[:1], ["cat"]) == [" ".join(words.split())]


def test_another_family_speaks_too(tmp_path: Path, scenes: tuple) -> None:
    """Qwen2.5-VL, whose checkpoint asks for sampling: still greedy, whatever the batch."""
    folder = save_qwen_folder(tmp_path)
    three, one = (captioner.build(config(folder, batch=b, size=32), "cpu") for b in (3, 1))
    said = three.caption(*scenes, WORDS)
    assert len(set(said)) > 1
    assert said == three.caption(*scenes, WORDS) == one.caption(*scenes, WORDS)


def test_bf16_runs_and_is_deterministic(folder: Path, scenes: tuple) -> None:
    teller = captioner.build(config(folder, dtype="bfloat16"), "cpu")
    assert isinstance(teller, VlmCaptioner) and teller.model.dtype == torch.bfloat16
    assert teller.caption(*scenes, WORDS) == teller.caption(*scenes, WORDS)


def test_tied_word_embeddings_are_no_missing_tensor(tmp_path: Path) -> None:
    processor = vlm_processor()
    model = tiny_vlm(processor, tied=True)
    folder = save_vlm_folder(tmp_path, processor, model)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    teller = captioner.build(config(folder), "cpu")
    assert isinstance(teller, VlmCaptioner)
    words = teller.model.get_output_embeddings().weight
    assert torch.equal(words, model.get_input_embeddings().weight)


def test_tiles_are_looked_at_when_asked(folder: Path, scenes: tuple) -> None:
    images, masks = scenes
    item = [(images[0], masks[0], "cat")]
    whole, tiled = (
        captioner.build(config(folder, split=split), "cpu").inputs(item) for split in (False, True)
    )
    assert whole["pixel_values"].shape[1] == 1 and tiled["pixel_values"].shape[1] > 4


@pytest.mark.slow
def test_what_it_says_is_freed_of_appearance(tmp_path: Path, folder: Path, scenes: tuple) -> None:
    """A model that was taught a phrase of looks: the stage keeps what stands there."""
    images, masks = scenes
    teller = captioner.build(config(folder, max_tokens=60), "cpu")
    assert isinstance(teller, VlmCaptioner)
    processor, model = teller.processor, teller.model.requires_grad_(True)
    answer = processor.tokenizer(TAUGHT + "<end_of_utterance>", return_tensors="pt")["input_ids"]
    given = teller.inputs([(images[0], masks[0], "cat")])
    teach(model, given, answer, steps=120)
    save_vlm_folder(tmp_path, processor, model)
    taught = captioner.build(config(tmp_path, max_tokens=60), "cpu")
    assert taught.caption(images[:1], masks[:1], ["cat"]) == [TAUGHT]

    instance = Instance(
        candidate_id="c", scene_id="x", subject_id="s", class_name="cat", found="one",
        box=(0, 0, 1, 1), mask="m", confidence=1.0, extra=0,
    )  # fmt: skip
    sampled = Sampled(id="c", scene_id="x", index=0, seed=0, image="i")
    pixels = {"i": images[0], "m": mask_image(masks[0])}
    output = describe([sampled], [instance], pixels.__getitem__, taught, DescribeConfig())
    assert [record.caption for record in output.records] == ["cat sleeping on a rug"]


def test_class_name_is_the_other_kind() -> None:
    plain = ClassNameConfig()
    made = captioner.build(plain, "cpu")
    assert isinstance(made, ClassNameCaptioner)
    assert made.fingerprint == captioner.fingerprint(plain)
    assert captioner.sources(plain) == []
    assert captioner.checks(plain)["class-name"]() == "the class name; no model"


def test_fingerprint_knows_weights_words_and_crop(folder: Path, teller: VlmCaptioner) -> None:
    base = config(folder)
    changes: list[dict[str, object]] = [
        {}, {"prompt": "x"}, {"margin": 0.2}, {"size": 32}, {"split": True}, {"max_tokens": 5},
        {"dtype": "bfloat16"},
    ]  # fmt: skip
    found = {captioner.fingerprint(base.model_copy(update=change)) for change in changes}
    assert len(found) == len(changes)
    assert teller.fingerprint == captioner.fingerprint(base)


def test_doctor_row(folder: Path) -> None:
    row = captioner.checks(config(folder))["vlm"]()
    assert row.startswith("Idefics3ForConditionalGeneration, ")


def damaged(folder: Path, out: Path, case: str) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    weights = out / "model.safetensors"
    tensors = load_file(weights)
    if case == "missing":
        tensors.pop("model.connector.modality_projection.proj.weight")
    elif case == "unexpected":
        tensors["model.more"] = torch.zeros(1)
    elif case == "shape":
        tensors["lm_head.weight"] = torch.zeros(3, 3)
    elif case == "tokenizer":
        (out / "tokenizer.json").unlink()
    elif case == "processor":
        (out / "processor_config.json").unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    if case == "shards":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("missing", "1 tensors missing, first: model.connector"),
        ("unexpected", "1 not expected, first: model.more"),
        ("shape", "1 of another shape, first: .*lm_head.weight"),
        ("tokenizer", "lacks tokenizer.json"),
        ("processor", "lacks processor_config.json or preprocessor_config.json"),
        ("shards", "lacks model-2.safetensors"),
    ],
)
def test_wrong_checkpoints_are_told_at_once(
    case: str, told: str, folder: Path, tmp_path: Path
) -> None:
    wrong = config(damaged(folder, tmp_path / "bad", case))
    for look in (captioner.checks(wrong)["vlm"], lambda: captioner.build(wrong, "cpu")):
        with pytest.raises(UserError, match=f"models.captioner.source: .*{told}"):
            look()


def test_a_model_that_sees_but_does_not_speak_is_told(tmp_path: Path) -> None:
    folder = save_dino_folder(tmp_path)
    for name in ("processor_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match="holds a vit, which does not answer about pictures"):
        captioner.checks(config(folder))["vlm"]()


def test_instruct_models_only(folder: Path, tmp_path: Path) -> None:
    mute = damaged(folder, tmp_path / "mute", "no template")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        captioner.build(config(mute), "cpu")


def test_prompt_with_another_gap_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"models.captioner.prompt: only \{class_name\}"):
        captioner.fingerprint(config(folder, prompt="a {subject}"))
