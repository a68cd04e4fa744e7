"""A small vision-language model in the layout of SmolVLM-256M-Instruct (Idefics3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_encoders import randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>",
    "<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
)  # fmt: skip
CHAT = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's own conversation format."""
TILE, TILE_TOKENS = 32, 4
"""Side of a tile in pixels; image tokens of a tile: (32 / 8 patches / 2 shuffled) squared."""


def byte_tokenizer(special: Sequence[str], eos: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as SmolLM2 and Qwen have, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token=eos,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def vlm_processor() -> Idefics3Processor:
    """Processor with SmolVLM's defaults: splits pictures into tiles unless told not to."""
    pictures = Idefics3ImageProcessor(
        do_image_splitting=True,
        size={"longest_edge": 4 * TILE},
        max_image_size={"longest_edge": TILE},
    )
    tokenizer = byte_tokenizer(SPECIAL, eos="<end_of_utterance>")
    return Idefics3Processor(pictures, tokenizer, image_seq_len=TILE_TOKENS, chat_template=CHAT)


def tiny_vlm(
    processor: Idefics3Processor, *, tied: bool = False
) -> Idefics3ForConditionalGeneration:
    """Random weights, always the same."""
    tokenizer = processor.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = Idefics3Config(
        image_token_id=processor.image_token_id,
        scale_factor=2,
        tie_word_embeddings=tied,
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": TILE, "patch_size": 8,
        },
        text_config={
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "vocab_size": len(tokenizer), "max_position_embeddings": 1024, **special,
        },
        **special,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    randomise(model, 4)
    model.generation_config = GenerationConfig(**special)
    return model


def save_vlm_folder(
    folder: Path, processor: Idefics3Processor, model: Idefics3ForConditionalGeneration
) -> Path:
    """As HuggingFaceTB/SmolVLM-256M-Instruct."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def teach(
    model: Idefics3ForConditionalGeneration, inputs: dict[str, Tensor], answer: Tensor, steps: int
) -> None:
    """Trains until the model says `answer` (B, T token ids) to `inputs`."""
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], dim=1)
    rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, **rest).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for line in message['content'] %}{% if line['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ line['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_qwen_folder(folder: Path) -> Path:
    """As Qwen/Qwen2.5-VL-3B-Instruct: another family, whose processor knows no tiles."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
               "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
    tokenizer = byte_tokenizer(special, eos="<|im_end|>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    pictures = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, min_pixels=64, max_pixels=32 * 32, temporal_patch_size=2
    )
    videos = Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
    processor = Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=QWEN_CHAT)
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": 64, "patch_size": 4, "spatial_merge_size": 2, "window_size": 16,
            "fullatt_block_indexes": [0], "temporal_patch_size": 2,
        },
        text_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer),
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "max_position_embeddings": 512,
        },
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    randomise(model, 5)
    # As published: sampling by default, which a captioner must not do.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20,
        eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
