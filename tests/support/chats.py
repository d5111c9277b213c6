"""A byte-level tokenizer trained on the spot, and chat templates in the shapes of the families."""

import argparse
import email.message
import inspect
import json
import textwrap
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}\n<tool_call>{{ c.function | tojson }}"
    "</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
    "{% else %}{% set day = 'unknown' %}{% endif %}"
    "{{ bos_token }}<|header|>system<|/header|>\n\nToday: {{ day }}"
    "{% if tools %}\nTools: {{ tools | tojson }}{% endif %}"
    "{% if messages and messages[0].role == 'system' %}\n{{ messages[0].content | trim }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot|>"
    "{% for m in messages %}<|header|>{{ m.role }}<|/header|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Thoughts of turns before the last question are left out.
THINKING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The text as a whole ends with one more token.
CLOSED = (
    "{% for m in messages %}<|header|>{{ m.role }}<|/header|>{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>{% else %}{{ eos_token }}"
    "{% endif %}"
)


@lru_cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [inspect.getdoc(m) or "" for m in (argparse, json, email.message, textwrap)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, inspect.getsource(textwrap)], trainer)
    return tokenizer.to_str()


def chat_tokenizer(template: str | None = None, **options: str) -> PreTrainedTokenizerFast:
    """A fresh tokenizer with merges and control tokens of its own."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} | options,
    )
    tokenizer.chat_template = template
    return tokenizer


def user(content: str) -> dict[str, str]:
    """What a user says."""
    return {"role": "user", "content": content}


def assistant(content: str, **more: object) -> dict[str, object]:
    """What the assistant says."""
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, str]:
    """What the conversation is under."""
    return {"role": "system", "content": content}
