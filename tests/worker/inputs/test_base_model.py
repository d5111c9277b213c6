"""A job's base model is the same one whether it is loaded or read block by block."""

from dataclasses import replace

import pytest
import torch

from fimlora.adapter.config import modules_in_full
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.heads import ModelRequest
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.inputs.models import read_config
from support.classifiers import save_base
from support.model_folders import make_tokenizer

CLASSIFIER = ModelRequest(
    "sha256:0", "sequence_classification", "float32", "cpu", 3, "single_label_classification"
)
SAVED = {
    "Bart": ["classification_head.dense", "classification_head.out_proj"],
    "Bert": ["bert.pooler.dense", "classifier"],
    "DebertaV2": ["classifier", "pooler.dense"],
    "DistilBert": ["classifier", "pre_classifier"],
    "Qwen3Next": ["score"],
}


@pytest.mark.parametrize("family", sorted(SAVED))
def test_the_head_is_one_whether_the_model_is_loaded_or_not(family, tmp_path):
    """Its tensors, the modules that are stored in full, and those that are no targets."""
    save_base(family, tmp_path)
    make_tokenizer(pad_token="[PAD]").save_pretrained(tmp_path)
    config = read_config(tmp_path)
    streamed, resident = (
        BaseModel(tmp_path, config, CLASSIFIER, 0, ModelCache(limit_bytes=1 << 30))
        for _ in range(2)
    )
    loaded = resident.load()

    heads = streamed.head(), resident.head()

    assert modules_in_full(streamed.head_names()) == SAVED[family]
    assert heads[0].keys() == heads[1].keys() == set(streamed.head_names())
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())
    assert all(
        torch.equal(t, loaded.get_parameter(name).detach()) for name, t in heads[0].items()
    )
    assert streamed.drawn == resident.drawn


def test_a_language_model_has_no_head_to_store(model_folders):
    """PEFT trains nothing of it in full."""
    folder = model_folders / "decoder"
    request = replace(CLASSIFIER, task="causal_lm", n_outputs=None, problem_type=None)
    model = BaseModel(folder, read_config(folder), request, 4, ModelCache(limit_bytes=0))

    assert model.head() == {}
    assert model.drawn == frozenset()
