"""Whatever a ``config.json`` says, the service refuses it or the worker names it, soon.

Seeded mutants of tiny models go the whole way that a job's model goes: the service's look at
the files, then the worker's, then a skeleton, then the loaded model.
"""

import copy
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fimlora.model.input_limits import input_limits
from fimlora_service.errors import ServiceError
from fimlora_service.resolve.model_checks import check_task, read_model
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.heads import ModelRequest
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.inputs.models import load_tokenizer, longest_input, read_config
from fimlora_worker.job.failures import job_error
from support.model_folders import make_tokenizer

N_MUTANTS = 14
AT_MOST_S = 10.0
AT_MOST_MIB = 512
SIZES = {
    "vocab_size": 55, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip
LABELS, TEXT = "sequence_classification", "causal_lm"
FAMILIES: dict[str, tuple[Any, dict[str, Any], Any, str]] = {
    "bert": (transformers.BertConfig, SIZES, transformers.AutoModel, LABELS),
    "roberta": (
        transformers.RobertaConfig, SIZES | {"pad_token_id": 1}, transformers.AutoModel, LABELS,
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        SIZES | {"relative_attention": True, "pos_att_type": ["p2c"]},
        transformers.AutoModel, LABELS,
    ),
    "t5": (
        transformers.T5Config,
        {"vocab_size": 55, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
        transformers.AutoModelForSeq2SeqLM, LABELS,
    ),
    "llama": (
        transformers.LlamaConfig, SIZES | {"num_key_value_heads": 1},
        transformers.AutoModelForCausalLM, TEXT,
    ),
    "gpt2": (
        transformers.GPT2Config,
        {"vocab_size": 55, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        transformers.AutoModelForCausalLM, TEXT,
    ),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        SIZES | {
            "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 8, "head_dim": 8,
        },
        transformers.AutoModelForCausalLM, TEXT,
    ),
    "mamba": (
        transformers.MambaConfig,
        {"vocab_size": 55, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
        transformers.AutoModelForCausalLM, TEXT,
    ),
}  # fmt: skip
ODD = (
    -1, 0, 1, 3, 7, 10**9, 2**63, 10**30, -(10**9), 2.5, float("nan"), float("inf"), "six", "",
    None, True, False, [], [None], {}, {"a": 1}, [[[]]], "int4", "../../x", "\0",
)  # fmt: skip
ADDED = (
    "text_config", "quantization_config", "rope_parameters", "rope_scaling", "head_dim",
    "num_labels", "id2label", "layer_types", "dtype", "torch_dtype", "is_decoder", "num_experts",
    "sliding_window", "problem_type", "max_position_embeddings", "attn_implementation",
)  # fmt: skip


def mutated(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three fields changed, removed or added."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice(sorted(config.keys() - {"transformers_version"}))
        match rng.randrange(10):
            case 0 if key != "model_type":
                del config[key]
            case 1 if type(config[key]) is int:
                config[key] = rng.choice((config[key] + 1, -config[key], config[key] * 10**6))
            case 2:
                config[rng.choice(ADDED)] = rng.choice(ODD)
            case _:
                config[key] = rng.choice(ODD)
    return config


def serve(folder: Path, task: str) -> str:
    """What the service says."""
    try:
        config, _ = read_model(folder, where="the model")
        check_task(config, None, task, is_chat=False, where="the model")
    except ServiceError as error:
        return error.code
    return "accepted"


def work(folder: Path, task: str, number: int) -> str:
    """What a job of the model would end with."""
    labels = (3, "single_label_classification") if task == LABELS else ()
    try:
        config, tokenizer = read_config(folder), load_tokenizer(folder)
        request = ModelRequest(str(number), task, "float32", "cpu", *labels)
        pad_id = tokenizer.pad_token_id
        model = BaseModel(folder, config, request, pad_id, ModelCache(limit_bytes=1))
        model.need(n_tokens=64)
        limits = input_limits(model.outline())
        assert longest_input(64, tokenizer, config, limits.n_positions) > 0
        model.load()
    except Exception as error:
        reported = job_error(error)
        assert str(folder.parent) not in reported.detail
        return reported.code
    return "loaded"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_configuration_is_a_fault_of_ours(family, tmp_path):
    """No `internal`, no exception of a library, no long wait, no memory that is filled."""
    config_class, options, auto_class, task = FAMILIES[family]
    folder = tmp_path / "m"
    torch.manual_seed(0)
    auto_class.from_config(config_class(**options)).save_pretrained(folder)
    make_tokenizer(eos_token="[EOS]", pad_token="[PAD]").save_pretrained(folder)
    sound = json.loads((folder / "config.json").read_text())
    assert (serve(folder, task), work(folder, task, -1)) == ("accepted", "loaded")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = set()
    for number in range(N_MUTANTS):
        config = mutated(sound, random.Random(f"{family} {number}"))
        (folder / "config.json").write_text(json.dumps(config))
        started = time.monotonic()
        served, worked = serve(folder, task), work(folder, task, number)
        took = time.monotonic() - started

        assert worked in {"loaded", "unsupported_architecture"}, config
        # What the service refuses, the worker does not run, either.
        assert served == "accepted" or worked != "loaded", config
        assert took < AT_MOST_S, config
        ends.add(worked)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert "unsupported_architecture" in ends
    assert grown < AT_MOST_MIB * 1024
