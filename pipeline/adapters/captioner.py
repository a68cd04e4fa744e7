"""Words for an instance: its class name, or what a small vision-language model says of it.

What a model says goes through `describe.without_appearance`, which keeps no word of colour,
pattern or material, as the stage does with every captioner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image as Pillow
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters.preprocess import square
from focusdpo.pipeline.describe import ClassNameCaptioner
from focusdpo.pipeline.parts import Image, Mask
from focusdpo.pipeline.score import crop_on_white
from focusdpo.pipeline.stage import chunks
from focusdpo.store.checkpoints import (
    digest_files,
    load_whole,
    locate,
    read_headers,
    read_json,
    require_files,
    weight_files,
)

if TYPE_CHECKING:
    import torch

VERSION = 1
FIELD = "models.captioner.source"
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "merges.txt", "tokenizer.model"]
PROMPT = (
    "Complete with one short phrase, without colours, patterns or materials, what the {class_name} "
    "does or how it is placed. Start with: a {class_name}"
)


class ClassNameConfig(StrictModel):
    """An instance is called by its class name: no model."""

    kind: Literal["class-name"] = "class-name"


class VlmConfig(StrictModel):
    """A vision-language model of transformers' image-text-to-text classes."""

    kind: Literal["vlm"] = "vlm"
    source: str = Field(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        description="folder or hub id (Apache-2.0; -500M-Instruct says more)",
    )
    prompt: str = Field(
        PROMPT, min_length=1, description="what is asked; {class_name} stands for the word"
    )
    margin: float = Field(
        0.1, ge=0, le=1, description="white border of an instance crop, a share of its longer side"
    )
    size: int = Field(
        512, ge=16, description="side in pixels of the crop that is handed to the processor"
    )
    split: bool = Field(
        False, description="whether processors that can also look at tiles of the crop do so"
    )
    max_tokens: int = Field(24, ge=1, description="longest answer in tokens")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and activations"
    )
    batch: int = Field(16, ge=1, description="instances in one call of the model")


def checks(config: ClassNameConfig | VlmConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`."""
    if isinstance(config, ClassNameConfig):
        return {config.kind: lambda: "the class name; no model"}

    def whole() -> str:
        folder, files = _look(config)
        name = require_whole(folder)
        return f"{name}, {sum(file.stat().st_size for file in files) / 1e6:.0f} MB"

    return {config.kind: whole}


def sources(config: ClassNameConfig | VlmConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    return [] if isinstance(config, ClassNameConfig) else [(FIELD, config.source, PATTERNS)]


def fingerprint(config: ClassNameConfig | VlmConfig) -> str:
    """Hash of weights, words, crop and dtype. UserError for absent weights."""
    if isinstance(config, ClassNameConfig):
        return ClassNameCaptioner.fingerprint
    folder, files = _look(config)
    texts = sorted({*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")})
    settings = config.model_dump_json(exclude={"source", "batch"})
    return digest_files([*files, *texts], f"{config.kind}-{VERSION}", settings)


def build(config: ClassNameConfig | VlmConfig, device: str) -> ClassNameCaptioner | VlmCaptioner:
    """The captioner on `device`. UserError for absent or wrong weights."""
    if isinstance(config, ClassNameConfig):
        return ClassNameCaptioner()
    folder, _ = _look(config)
    require_whole(folder)
    return load_captioner(folder, config, device, fingerprint(config))


def _look(config: VlmConfig) -> tuple[Path, list[Path]]:
    """Folder and weight files. UserError unless weights, processor and tokenizer are there."""
    try:
        config.prompt.format(class_name="cat")
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"models.captioner.prompt: only {{class_name}} can be filled in ({error!r})"
        ) from error
    folder = locate(config.source, FIELD)
    read_json(folder / "config.json", FIELD)
    files = weight_files(folder, FIELD)
    read_headers(files, FIELD)
    require_files(folder, [("processor_config.json",), ("preprocessor_config.json",)], FIELD)
    require_files(folder, [("tokenizer.json",)], FIELD)
    return folder, files


class VlmCaptioner:
    """Fits pipeline.parts.Captioner: greedy, so the same picture gives the same words."""

    def __init__(self, model: Any, processor: Any, config: VlmConfig, fingerprint: str) -> None:
        self.model, self.processor, self.fingerprint = model, processor, fingerprint
        self._config = config

    def caption(
        self, images: Sequence[Image], masks: Sequence[Mask], class_names: Sequence[str]
    ) -> list[str]:
        """What the model says of each masked instance on white, one line; appearance is not yet
        taken out."""
        answers: list[str] = []
        items = list(zip(images, masks, class_names, strict=True))
        for part in chunks(items, self._config.batch):
            answers += self._answers(part)
        return answers

    def inputs(self, items: Sequence[tuple[Image, Mask, str]]) -> dict[str, torch.Tensor]:
        """What the model is given; prompts of a batch are padded on the left."""
        size = self._config.size
        crops = [square(crop_on_white(i, m, self._config.margin), size) for i, m, _ in items]
        prompts = [self._prompt(name) for _, _, name in items]
        # Not all processors can split; those that cannot would complain of the setting.
        can_split = hasattr(self.processor.image_processor, "do_image_splitting")
        settings = {"do_image_splitting": self._config.split} if can_split else {}
        batch = self.processor(
            text=prompts,
            images=[[Pillow.fromarray(crop)] for crop in crops],
            padding=True,
            return_tensors="pt",
            **settings,
        )
        device, dtype = self.model.device, self.model.dtype
        return {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }

    def _answers(self, items: Sequence[tuple[Image, Mask, str]]) -> list[str]:
        import torch

        given = self.inputs(items)
        with torch.inference_mode():
            # A checkpoint's generation_config may ask for sampling.
            tokens = self.model.generate(
                **given,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=self._config.max_tokens,
            )
        answers = tokens[:, given["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [" ".join(words.split()) for words in texts]

    def _prompt(self, class_name: str) -> str:
        asked = self._config.prompt.format(class_name=class_name)
        content = [{"type": "image"}, {"type": "text", "text": asked}]
        return str(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )


def require_whole(folder: Path) -> str:
    """The class of a folder's model. UserError unless transformers has it as an image-text-to-text
    model and the files hold exactly its tensors; looked at on torch's meta device."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise UserError(
            f"{FIELD}: {folder} holds a {config.model_type}, which does not answer about pictures; "
            "an image-text-to-text model is expected"
        )
    load_whole(AutoModelForImageTextToText, folder, FIELD, device_map="meta")
    return str(name)


def load_captioner(folder: Path, config: VlmConfig, device: str, fingerprint: str) -> VlmCaptioner:
    """The captioner of a folder as transformers saves it. UserError when its processor has no
    conversation format or needs a package that is not there."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from focusdpo.pipeline.adapters.streaming import DTYPES

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise UserError(f"{FIELD}: the processor of {folder} cannot be made: {error}") from error
    if not processor.chat_template:
        raise UserError(f"{FIELD}: {folder} has no chat template; an instruct model is expected")
    processor.tokenizer.padding_side = "left"  # answers begin where all prompts end
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=DTYPES[config.dtype], use_safetensors=True, local_files_only=True
    )
    model = model.to(device).eval().requires_grad_(False)
    return VlmCaptioner(model, processor, config, fingerprint)
