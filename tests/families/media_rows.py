"""Rows with images or sounds, as a dataset has them and as the model's own processor makes them.

The text of a row is written here by hand, and so are its labels: the tokenizer has one token for
each byte, so that an answer of n bytes is the last n tokens.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from families.registry import Family
from fimlora_worker.inputs.media.processor import load_processor
from support.seeing import data_url, pixels, png, wav

WORDS = ("a red square", "two dogs", "rain over Oslo", "nothing much", "a map", "an old door")
SIZES = ((28, 28), (42, 28), (28, 56), (56, 56), (30, 40), (28, 28))
RATE, FIRST_SAMPLES, MORE_SAMPLES = 16_000, 6_000, 500
HEADER_BYTES, LOUDEST = 44, 32_768
END = "</s>"


def media_dataset(family: Family) -> list[dict[str, Any]]:
    """Conversations whose user shows one or two images, or lets one sound be heard."""
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [*_parts(family, n), {"type": "text", "text": "?"}],
                },
                {"role": "assistant", "content": words},
            ]
        }
        for n, words in enumerate(WORDS)
    ]


def _parts(family: Family, n: int) -> list[dict[str, Any]]:
    if family.hears:
        return [{"type": "audio", "audio": data_url(_sound(n), "audio/wav")}]
    return [{"type": "image", "image": data_url(png(pixels(n, *SIZES[n])))}] * _n_images(n)


def _n_images(n: int) -> int:
    return 1 + n % 2


def _sound(n: int) -> bytes:
    return wav(n, n_samples=FIRST_SAMPLES + MORE_SAMPLES * n, rate=RATE)


def media_examples(family: Family, checkpoint: Path) -> list[dict[str, Tensor]]:
    """The rows one by one, as the processor makes them of text and what is shown."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    processor = load_processor(checkpoint, config)
    found = []
    for n, words in enumerate(WORDS):
        kind = "audio" if family.hears else "image"
        parts = [{"type": kind}] * (1 if family.hears else _n_images(n))
        text = processor.tokenizer.apply_chat_template(
            [
                {"role": "user", "content": [*parts, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": words},
            ],
            tokenize=False,
        )
        made = dict(
            processor(
                text=[text], return_tensors="pt", add_special_tokens=False, **_shown(family, n)
            )
        )
        n_answer = len(processor.tokenizer(words + END, add_special_tokens=False)["input_ids"])
        labels = made["input_ids"].clone()
        labels[:, :-n_answer] = -100
        found.append({**made, "labels": labels})
    return found


def _shown(family: Family, n: int) -> dict[str, Any]:
    if not family.hears:
        return {"images": [Image.fromarray(pixels(n, *SIZES[n]))] * _n_images(n)}
    samples = torch.frombuffer(bytearray(_sound(n)[HEADER_BYTES:]), dtype=torch.int16)
    return {"audio": [(samples.float() / LOUDEST).numpy()], "sampling_rate": RATE}
