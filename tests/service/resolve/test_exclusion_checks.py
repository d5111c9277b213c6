"""What is left out of the targets is checked before queueing, as far as the weights' names tell."""

from typing import Any

import pytest
import transformers

from fimlora.errors import FimloraError
from fimlora.model.targets import choose_targets
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.exclusion_checks import check_exclusions

BERT = transformers.BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
)
QUERY = "bert.encoder.layer.0.attention.self.query"


def is_refused_here(body: Any, config: Any, shapes: Any, change: Any) -> bool:
    request = CalibrationRequest.model_validate(body | change)
    try:
        check_exclusions(request, shapes=shapes, config=config)
    except ValidationFailed as refusal:
        (error,) = refusal.errors
        return str(error["field"]).startswith("body.exclude_modules")
    return False


def is_refused_by_the_engine(model: Any, change: Any) -> bool:
    try:
        choose_targets(model, **({"target_modules": None} | change))
    except FimloraError:
        return True
    return False


@pytest.fixture(scope="module")
def bert():
    return transformers.BertForSequenceClassification(BERT)


NAMED = {"target_modules": ["query", "value"]}


@pytest.mark.parametrize(
    "change",
    [
        {"exclude_modules": ["query"]},
        {"exclude_modules": ["qurey"]},
        {"exclude_modules": ["query", "uery"]},
        {"exclude_modules": [QUERY]},
        {"exclude_modules": [QUERY.replace("0", "7")]},
        {"exclude_modules": ["layer.0.attention.self.query"]},
        {"exclude_modules": ["attention"]},
        {"exclude_modules": ["bert.encoder"]},
        {"exclude_modules": ["layer.0"]},
        {"exclude_modules": ["LayerNorm"]},
        {"exclude_modules": ["dropout"]},
        {"exclude_modules": ["intermediate_act_fn"]},
        {"exclude_modules": ["word_embeddings"]},
        {"exclude_modules": ["pooler.dense"]},
        {"exclude_modules": ["classifier"]},
        NAMED | {"exclude_modules": ["query"]},
        NAMED | {"exclude_modules": ["value", "query"]},
        NAMED | {"exclude_modules": [QUERY]},
        {"target_modules": [QUERY], "exclude_modules": [QUERY]},
        {"target_modules": [QUERY], "exclude_modules": ["self.query"]},
        {"target_modules": "all-linear", "exclude_modules": ["query", "key", "value"]},
        {"target_modules": "all-linear", "exclude_modules": ["query", "key", "value", "dense"]},
    ],
    ids=str,
)
def test_as_the_engine_refuses(body, bert, change):
    """On the model itself: service and worker say the same of names and what is left."""
    weights = bert.state_dict()
    shapes = {name: tuple(w.shape) for name, w in weights.items() if "classifier" not in name}

    here = is_refused_here(body, BERT.to_dict(), shapes, change)

    assert here is is_refused_by_the_engine(bert, change)


@pytest.mark.parametrize("missing", ["pooler", "classifier"])
def test_what_is_drawn_may_be_named(body, bert, missing):
    """A checkpoint lacks it, and the loaded model has it."""
    entry = {"pooler": "pooler.dense", "classifier": "classifier"}[missing]
    shapes = {n: tuple(w.shape) for n, w in bert.state_dict().items() if missing not in n}

    change = {"exclude_modules": [entry]}
    assert not is_refused_here(body, BERT.to_dict(), shapes, change)
    assert not is_refused_by_the_engine(bert, change)


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ("language_model.model.layers.0.q_proj", True),
        ("model.language_model.layers.0.q_proj", True),
        ("q_proj", True),
        ("model.language_model.layers.7.q_proj", False),
        ("qq_proj", False),
    ],
)
def test_names_of_the_loaded_tree_are_accepted_too(body, entry, fits):
    """A model of several parts is loaded into another tree than it was saved from."""
    shapes = {"language_model.model.layers.0.q_proj.weight": (16, 16)}
    config = {"text_config": {"model_type": "llama"}}

    refused = is_refused_here(body, config, shapes, {"exclude_modules": [entry]})

    assert refused is not fits


def test_a_mixture_of_experts_is_left_to_the_worker(body):
    """Its modules are renamed on loading."""
    shapes = {"model.layers.0.mlp.experts.0.up_proj.weight": (16, 16)}
    change = {"exclude_modules": ["gate_up_proj"]}

    assert not is_refused_here(body, {"num_experts": 4}, shapes, change)
    assert is_refused_here(body, {}, shapes, change)


@pytest.mark.parametrize("endpoint", ["/calibrate", "/estimate"])
def test_the_answer_names_entry_and_near_names(http, body, endpoint):
    """With the entry's place in the list; nothing is queued."""
    change = {"exclude_modules": ["value", "qurey"]}

    answer = http.post(endpoint, json=body | change)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "body.exclude_modules[1]"
    assert "'query'" in answer.json()["detail"]
    assert http.get("/jobs").json()["data"] == []


def test_nothing_left_is_said_of_the_list(http, body):
    """With what was meant."""
    change = {"target_modules": ["query"], "exclude_modules": ["self.query"]}

    answer = http.post("/calibrate", json=body | change)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "body.exclude_modules"
    assert "all 2 modules that target_modules=['query'] means" in answer.json()["detail"]
