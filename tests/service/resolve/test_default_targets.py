"""The default targets that the service is certain of are those that the worker takes."""

import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import BertConfig, BertModel

from fimlora.model.default_targets import ATTENTION
from fimlora.model.targets import choose_targets
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.default_targets import BY_TYPE, entries_of

ROWS = {"source": "inline", "rows": [{"text": "a"}]}


def request_of():
    return CalibrationRequest.model_validate(
        {"base_model": "local:tiny", "dataset": ROWS, "budget": 8}
    )


@pytest.mark.parametrize("model_type", BY_TYPE)
def test_the_table_is_that_of_peft_or_the_convention(model_type):
    """An architecture that PEFT lacks keeps to the convention."""
    entries = BY_TYPE[model_type]
    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)

    assert list(entries) == default if default else tuple(entries) in ATTENTION


def test_they_are_what_the_worker_chooses():
    """Of a real model, by the shapes of its weights."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=9, num_hidden_layers=2, **sizes))
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    chosen = {module.name for module in choose_targets(model, None).modules}

    entries = entries_of(request_of(), shapes=shapes, config=model.config.to_dict())

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert chosen == {name for name in linear if name.rpartition(".")[2] in entries}


@pytest.mark.parametrize(
    ("config", "adapter"),
    [
        ({"model_type": "of-tomorrow"}, None),
        ({"model_type": "bert"}, "trained"),
        ({"model_type": "llama"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_what_only_the_worker_knows(config, adapter):
    """Another architecture, an adapter's own modules, and names that the checkpoint lacks."""
    shapes = {"layer.0.query.weight": (4, 4), "layer.0.value.weight": (4, 4)}
    calibration = request_of().calibration.model_copy(update={"adapter": adapter})
    request = request_of().model_copy(update={"calibration": calibration})

    assert entries_of(request, shapes=shapes, config=config) is None
