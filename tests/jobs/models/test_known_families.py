"""No family that transformers knows is refused as it is: its default configuration passes."""

import json

import pytest
import transformers
from transformers import CONFIG_MAPPING

from fimlora.model.quantised_files import check_quantised
from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.models.code_fields import check_no_code
from fimlora_jobs.models.config_kinds import check_kinds
from fimlora_jobs.models.config_numbers import check_numbers
from fimlora_jobs.models.heads import (
    CAUSAL,
    CLASSIFIES,
    SEQ2SEQ,
    check_head,
    is_encoder_decoder,
    known_heads,
)
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_worker.errors import UnsupportedArchitecture
from fimlora_worker.inputs.heads import head_class, head_task

USABLE = sorted(
    k for k, heads in known_heads().items() if heads & {CAUSAL, CLASSIFIES, SEQ2SEQ}
)
PAIR, LABELLED = TextFields(prompt="p", completion="c"), TextFields(text="t", label="l")
NEED_MORE = {"gemma4_assistant"}  # no configuration without arguments


def default_of(kind: str) -> transformers.PretrainedConfig:
    return CONFIG_MAPPING[kind]()


def test_default_configurations_pass():
    """Whatever a rule takes for certain holds for each of them."""
    assert len(USABLE) > 200
    for kind in sorted(set(USABLE) - NEED_MORE):
        config = json.loads(default_of(kind).to_json_string(use_diff=False))
        check_numbers(config | {"model_type": kind}, n_tensors=100)
        check_quantised(config)
        check_no_code(config)
        check_kinds(config | {"model_type": kind})


@pytest.mark.parametrize("fields", [PAIR, LABELLED], ids=["pairs", "labels"])
def test_the_table_of_heads_says_what_the_worker_would(fields):
    """For each family, with the default configuration."""
    for kind in sorted(set(USABLE) - NEED_MORE):
        config = default_of(kind)
        assert passes(lambda c=config: head_class(c, head_task(c, fields))) == passes(
            lambda c=config, k=kind: check_head(c.to_dict() | {"model_type": k}, fields.task)
        ), kind


def test_encoder_decoders_are_told_from_other_families():
    """By their own word, in the default configuration."""
    kinds = [kind for kind, heads in known_heads().items() if SEQ2SEQ in heads]

    assert {"t5", "bart", "marian", "mbart", "m2m_100", "pegasus"} <= set(kinds)
    for kind in kinds:
        assert is_encoder_decoder({"model_type": kind})
        assert is_encoder_decoder(default_of(kind).to_dict() | {"model_type": kind})
    for kind in ("llama", "bert", "qwen2_audio", "unknown"):
        assert not is_encoder_decoder({"model_type": kind})


def passes(check) -> bool:
    try:
        check()
    except (ModelRefused, UnsupportedArchitecture):
        return False
    return True
