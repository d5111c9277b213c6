"""What is to train whole is checked before queueing, as far as the weights' names tell."""

from typing import Any

import pytest
import transformers

from fimlora.errors import FimloraError
from fimlora.measuring.settings import Settings
from fimlora.model.saved_whole import find_saved
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.saved_checks import check_saved, saved_parameters

CONFIG = transformers.LlamaConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=24, tie_word_embeddings=False,
)  # fmt: skip
TARGETS = ["q_proj", "up_proj"]


@pytest.fixture(scope="module")
def llama():
    return transformers.LlamaForCausalLM(CONFIG)


def request_of(body: Any, saved: Any, targets: Any) -> CalibrationRequest:
    return CalibrationRequest.model_validate(
        body | {"modules_to_save": saved, "target_modules": targets}
    )


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def is_refused_by_the_engine(model: Any, saved: Any, targets: Any) -> bool:
    try:
        Settings(target_modules=targets, modules_to_save=saved).choose(model)
    except FimloraError:
        return True
    return False


@pytest.mark.parametrize("targets", [TARGETS, ["lm_head", "q_proj"], "all-linear"])
@pytest.mark.parametrize(
    "saved",
    [
        ["lm_head"], ["embed_tokens", "lm_head"], ["lm_haed"], ["norm"], ["model.norm"], ["head"],
        ["q_proj"], ["self_attn"], ["layers.0.self_attn"], ["layers.1.mlp", "layers.0.mlp"],
        ["model.layers.7.mlp"],
    ],
    ids=str,
)  # fmt: skip
def test_as_the_engine_refuses(body, llama, saved, targets):
    """On the model itself: service and worker say the same."""
    request = request_of(body, saved, targets)
    try:
        check_saved(request, shapes=shapes_of(llama), config=CONFIG.to_dict())
    except ValidationFailed as refusal:
        (error,) = refusal.errors
        assert str(error["field"]).startswith(("body.modules_to_save", "body.target_modules"))
        assert is_refused_by_the_engine(llama, saved, targets)
    else:
        assert not is_refused_by_the_engine(llama, saved, targets)


@pytest.mark.parametrize(
    "saved", [["lm_head"], ["embed_tokens", "lm_head"], ["norm"], ["layers.0.mlp", "up_proj"]]
)
@pytest.mark.parametrize("is_tied", [False, True])
def test_parameters_are_those_of_the_loaded_model(body, saved, is_tied):
    """Of a head that is tied, as many as the table has: its copy trains by itself."""
    config = transformers.LlamaConfig(**CONFIG.to_dict() | {"tie_word_embeddings": is_tied})
    model = transformers.LlamaForCausalLM(config)
    shapes = shapes_of(model)
    if is_tied:
        shapes.pop("lm_head.weight")

    found = saved_parameters(
        request_of(body, saved, TARGETS), shapes=shapes, config=config.to_dict()
    )

    assert found == sum(each.parameters for each in find_saved(model, saved))


def test_what_only_the_worker_can_tell_is_left_to_it(body):
    """A mixture's modules are renamed on loading, and a head may be drawn."""
    shapes = {"model.layers.0.mlp.experts.0.up_proj.weight": (16, 16)}
    check_saved(request_of(body, ["any"], None), shapes=shapes, config={"num_experts": 4})
    check_saved(request_of(body, ["classifier"], None), shapes=shapes, config={})
    with pytest.raises(ValidationFailed, match="no module 'any'"):
        check_saved(request_of(body, ["any"], None), shapes=shapes, config={})
    assert (
        saved_parameters(request_of(body, ["classifier"], None), shapes=shapes, config={})
        is None
    )


@pytest.mark.parametrize("endpoint", ["/calibrate", "/estimate"])
@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"modules_to_save": "lm_head"}, "body.modules_to_save", "must be a list"),
        ({"modules_to_save": []}, "body.modules_to_save", "1 to"),
        ({"modules_to_save": ["qurey"]}, "body.modules_to_save[0]", "query"),
        (
            {"modules_to_save": ["query"], "target_modules": ["value", "query"]},
            "body.target_modules[1]",
            "one of both",
        ),
    ],
)
def test_the_answer_names_the_entry(http, body, endpoint, given, field, words):
    answer = http.post(endpoint, json=body | given)

    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert words in error["message"]


def test_an_estimate_tells_what_trains_whole(http, body):
    answer = http.post("/estimate", json=body | {"modules_to_save": ["dense"]})

    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    assert model["saved_parameters"] > 0
    assert "saved_parameters" not in http.post("/estimate", json=body).json()["model"]
