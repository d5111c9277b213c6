"""Both names of one weight among the targets: refused at once, as the engine would."""

from typing import Any

import pytest
import transformers
from safetensors.numpy import save_file

from fimlora.errors import FimloraError
from fimlora.measuring.settings import Settings
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.tie_checks import check_ties, tied_table
from support.service import make_model

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24,
}  # fmt: skip
MODELS = {
    "llama, tied": (transformers.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama, apart": (transformers.LlamaForCausalLM, {"tie_word_embeddings": False}),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        {"n_positions": 32, "n_inner": 24, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox, apart": (transformers.GPTNeoXForCausalLM, {}),
}


def model_of(name: str) -> Any:
    model_class, options = MODELS[name]
    return model_class(model_class.config_class(**SIZES, **options))


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """As save_pretrained writes them: a tied weight once, under the embedding's name."""
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def is_refused_by_the_engine(model: Any, targets: list[str]) -> bool:
    try:
        Settings(target_modules=targets).choose(model)
    except FimloraError as refusal:
        return "are one weight" in str(refusal)
    return False


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("has_word", [True, False])
@pytest.mark.parametrize("which", ["both", "table", "head"])
def test_as_the_engine_refuses(body, name, has_word, which):
    """Whether the configuration says it or leaves it to the model's default."""
    model = model_of(name)
    table = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    targets = {"both": [table.rpartition(".")[2], head], "table": [table], "head": [head]}[
        which
    ]
    config = model.config.to_dict()
    if not has_word and config.pop("tie_word_embeddings") is False:
        return  # a configuration that leaves out what is not its default cannot be this one's
    is_refused = is_refused_by_the_engine(model, targets)
    request = CalibrationRequest.model_validate(body | {"target_modules": targets})

    if is_refused:
        with pytest.raises(ValidationFailed, match="are one weight") as caught:
            check_ties(request, shapes=shapes_of(model), config=config)
        assert caught.value.errors[0]["field"] == "body.target_modules[1]"
        assert table in str(caught.value)
        assert "modules_to_save" in str(caught.value)
    else:
        check_ties(request, shapes=shapes_of(model), config=config)
    assert is_refused is (which == "both" and "apart" not in name)


@pytest.mark.parametrize(
    "change",
    [
        {"exclude_modules": ["lm_head"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ".*(embed_tokens|lm_head)"},
        {"target_modules": None},
    ],
    ids=str,
)
def test_what_is_not_certain_is_left_to_the_worker(body, change):
    """One of both may be left out, or trained whole; an expression is matched on the model."""
    both = {"target_modules": ["embed_tokens", "lm_head"]}
    model = model_of("llama, tied")
    request = CalibrationRequest.model_validate(body | both | change)

    check_ties(request, shapes=shapes_of(model), config=model.config.to_dict())


@pytest.mark.parametrize("head", ["score", "classifier", "layers.0.router.classifier"])
def test_the_head_of_a_classifier_is_no_weight_of_the_vocabulary(body, head):
    """A classifier's own, which training adds, and other maps of that name."""
    request = CalibrationRequest.model_validate(
        body | {"target_modules": ["embed_tokens", head]}
    )
    model = model_of("llama, tied")

    check_ties(request, shapes=shapes_of(model), config=model.config.to_dict())


def test_a_table_is_tied_if_no_other_matrix_can_be_the_head():
    """A second one of the vocabulary, or a word of the configuration, says that it is not."""
    shapes = {"model.embed_tokens.weight": (50, 16), "model.layers.0.q_proj.weight": (16, 16)}
    config = {"vocab_size": 50}

    assert tied_table(shapes, config) == "model.embed_tokens"
    assert tied_table(shapes | {"lm_head.weight": (50, 16)}, config) is None
    assert tied_table(shapes, config | {"tie_word_embeddings": False}) is None
    assert tied_table(shapes, {"text_config": config | {"tie_word_embeddings": False}}) is None
    assert tied_table(shapes, {"text_config": config}) == "model.embed_tokens"
    for head in ("lm_head.qweight", "lm_head.weight", "model.score.weight"):  # packed, padded
        assert tied_table(shapes | {head: (64, 16)}, config) is None
    assert tied_table({}, config) is None
    assert tied_table(shapes, {}) is None


def test_a_post_and_an_estimate_are_refused_before_anything_is_queued(http, body, data_dir):
    """At once, with the entry; one of both is taken."""
    model = model_of("llama, tied")
    folder = make_model(data_dir / "models" / "tied", config=model.config.to_dict())
    weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors")
    request = body | {
        "base_model": "local:tied", "target_modules": ["q_proj", "lm_head", "embed_tokens"],
    }  # fmt: skip
    request |= {"dataset": {"source": "inline", "rows": [{"text": "a b c"}] * 8}}

    for path in ("/calibrate", "/estimate"):
        found = http.post(path, json=request)
        assert found.status_code == 422, found.text
        assert found.json()["errors"][0]["field"] == "body.target_modules[2]"
        assert "'model.embed_tokens' and 'lm_head' are one weight" in found.json()["detail"]
    one = request | {"target_modules": ["q_proj", "lm_head"]}
    assert http.post("/calibrate", json=one).status_code == 202
