"""The loaded vision-language captioner. Imports torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as Pillow
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.preprocess import square
from focusdpo.pipeline.adapters.streaming import DTYPES
from focusdpo.pipeline.parts import Image, Mask
from focusdpo.pipeline.score import crop_on_white
from focusdpo.pipeline.stage import chunks

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.captioner import VlmConfig

FIELD = "models.captioner.source"


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
        said: list[str] = []
        items = list(zip(images, masks, class_names, strict=True))
        for part in chunks(items, self._config.batch):
            said += self._answers(part)
        return said

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
        said = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [" ".join(words.split()) for words in said]

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
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise UserError(
            f"{FIELD}: {folder} holds a {config.model_type}, which does not answer about pictures; "
            "an image-text-to-text model is expected"
        )
    _, told = AutoModelForImageTextToText.from_pretrained(
        folder,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
    )
    problems = [
        f"{len(told[key])} {what}, first: {min(map(str, told[key]))}"
        for key, what in (
            ("missing_keys", "tensors missing"),
            ("unexpected_keys", "not expected"),
            ("mismatched_keys", "of another shape"),
        )
        if told[key]
    ]
    if problems:
        raise UserError(f"{FIELD}: not the weights of {name}: {'; '.join(problems)}")
    return str(name)


def load_captioner(folder: Path, config: VlmConfig, device: str, fingerprint: str) -> VlmCaptioner:
    """The captioner of a folder as transformers saves it. UserError when its processor has no
    conversation format or needs a package that is not there."""
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
