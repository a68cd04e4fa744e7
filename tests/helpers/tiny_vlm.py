"""A small vision-language model in the layout of SmolVLM-256M-Instruct (Idefics3)."""

from __future__ import annotations

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


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE like SmolLM2's, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def vlm_processor() -> Idefics3Processor:
    """Processor with SmolVLM's defaults: splits pictures into tiles unless told not to."""
    pictures = Idefics3ImageProcessor(
        do_image_splitting=True,
        size={"longest_edge": 4 * TILE},
        max_image_size={"longest_edge": TILE},
    )
    return Idefics3Processor(
        pictures, byte_tokenizer(), image_seq_len=TILE_TOKENS, chat_template=CHAT
    )


def tiny_vlm(processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
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
        tie_word_embeddings=False,
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
