"""What a trained adapter's folder says, against what PEFT makes of it; and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fimlora.adapter.trained.read import Limits, read_trained
from fimlora.errors import InvalidAdapter
from support.adapters import write
from support.peft_models import lora_layers, resolved
from support.trained_adapters import edit_config, edit_tensors, save_trained

PREFIX = "base_model.model."


def facts(folder) -> dict[str, tuple[int, float]]:
    return {name: (m.rank, m.scale) for name, m in read_trained(folder).modules.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 5, "mlp.up_proj": 2}},
        {"alpha_pattern": {"^model.layers.0.self_attn.k_proj": 3, "k_proj": 9.5}},
        {"rank_pattern": {r".*\.1\..*": 1}, "alpha_pattern": {r"self_attn\.[qk]_proj": 1}},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["layers.0.mlp.up_proj", "q_proj"]},
        {"target_modules": r".*\.(q_proj|up_proj)"},
    ],
    ids=["uniform", "rslora", "ranks", "alphas", "expressions", "layers", "excluded", "regex"],
)
def test_ranks_and_scales_are_those_of_peft(tmp_path, options):
    """Per module, as the loaded model has them."""
    if "target_modules" in options:
        from support.models import tiny
        from support.peft_models import uniform_peft

        peft_model = uniform_peft(tiny("llama_gqa_lm")[0], options["target_modules"])
        peft_model.save_pretrained(tmp_path)
    else:
        peft_model = save_trained("llama_gqa_lm", tmp_path, **options)

    wanted = {name: (r, scale) for name, (r, _, scale) in resolved(peft_model).items()}
    assert facts(tmp_path) == wanted
    for name, layer in lora_layers(peft_model).items():
        A, B = read_trained(tmp_path).matrices(name)
        assert torch.equal(torch.from_numpy(A), layer.lora_A["default"].weight.double())
        assert torch.equal(torch.from_numpy(B), layer.lora_B["default"].weight.double())


@pytest.mark.parametrize("layout", ["B", "C"])
def test_our_own_layouts_are_read(tmp_path, layout):
    """As planned; layout C has one rank for all."""
    _, plan = write("gpt2_lm", tmp_path / "a", weights=True, layout=layout)

    wanted = {name: (rank if layout == "B" else 8, 2.0) for name, rank in plan.ranks.items()}
    assert facts(tmp_path / "a") == wanted


def test_embeddings_are_read(tmp_path):
    """Whose tensors are named in another way."""
    from support.models import tiny
    from support.peft_models import uniform_peft

    uniform_peft(tiny("llama_gqa_lm")[0], ["embed_tokens", "q_proj"]).save_pretrained(
        tmp_path, save_embedding_layers=False
    )

    found = read_trained(tmp_path).modules["model.embed_tokens"]
    assert (found.rank, found.target.d_in, found.target.d_out) == (4, 61, 24)


def first_a(tensors) -> str:
    return next(key for key in sorted(tensors) if key.endswith("lora_A.weight"))


def drop(tensors):
    del tensors[first_a(tensors)]


def add(**extra):
    return lambda tensors: tensors.update({f"{PREFIX}{k}": v for k, v in extra.items()})


def rename(old: str, new: str):
    def edit(tensors):
        for key in [*tensors]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return edit


def set_first(value):
    return lambda tensors: tensors.update({first_a(tensors): value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop, "lora_A.weight is missing"),
        (add(**{"model.norm.weight": torch.ones(3)}), "unexpected"),
        (add(**{"x.lora_magnitude_vector": torch.ones(3)}), "DoRA"),
        (add(**{"x.lora_E": torch.ones(3, 1)}), "AdaLoRA"),
        (add(**{"x.lora_B.bias": torch.ones(3)}), "bias of LoRA"),
        (rename("lora_A.", "lora_A.default."), "an adapter's name"),
        (rename(PREFIX, ""), "does not start with"),
        (set_first(torch.ones(3, 24)), "rank 3.*it has 6|3 rows and B 6"),
        (set_first(torch.ones(6, 24, 1)), "must be a matrix"),
        (set_first(torch.ones(6, 24).to(torch.int8)), "type 'I8'"),
        (rename("q_proj", "other_proj"), "target_modules does not mean"),
        (rename("q_proj", "q proj"), "no name of a module"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, edit, message):
    """Each is what PEFT would leave aside, or fail on."""
    save_trained("llama_gqa_lm", tmp_path)
    edit_tensors(tmp_path, edit)

    with pytest.raises(InvalidAdapter, match=message):
        read_trained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "ADALORA"}, "convert"),
        ({"peft_type": "LOKR"}, "only LORA is read"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias that trains beside B"),
        ({"layer_replication": [[0, 1]]}, "layers that are repeated"),
        ({"a_field_of_tomorrow": {"x": 1}}, "'a_field_of_tomorrow' is set"),
        ({"init_lora_weights": "pissa"}, "base weights"),
        ({"r": 5}, "rank 6, and by r and rank_pattern it has 5"),
        ({"r": True}, "rank True"),
        ({"rank_pattern": {"q_proj": 5.0}}, "rank 5.0"),
        ({"rank_pattern": 7}, "rank_pattern is 7; it must be an object"),
        ({"lora_dropout": 1}, "from 0 to below 1"),
        ({"layers_to_transform": ["1"]}, "must be whole numbers"),
        ({"base_model_name_or_path": "\ud800"}, "surrogates"),
        (
            {"rank_pattern": {f"{PREFIX}model.layers.0.self_attn.q_proj": 6}},
            "remove that prefix",
        ),
        ({"alpha_pattern": {f"^{PREFIX}q_proj": 6}}, "remove that prefix"),
        ({"lora_alpha": 0}, "alpha 0"),
        ({"lora_alpha": "16"}, "alpha '16'"),
        ({"task_type": "POETRY"}, "POETRY"),
        ({"target_modules": ["q_proj"]}, "target_modules does not mean"),
        ({"target_modules": None}, "target_modules does not mean"),
        ({"target_modules": [["q_proj"]]}, "must be a list"),
        ({"exclude_modules": ["q_proj"]}, "target_modules does not mean"),
        ({"modules_to_save": ["a"] * 2_000}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_that_are_not_plain_lora_are_refused(tmp_path, fields, message):
    """By the name of the field, in a sentence."""
    save_trained("llama_gqa_lm", tmp_path)
    edit_config(tmp_path, **fields)

    if message is None:
        assert read_trained(tmp_path).modules
        return
    with pytest.raises(InvalidAdapter, match=message):
        read_trained(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    """It is named, with the way to the other format."""
    save_trained("llama_gqa_lm", tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")

    with pytest.raises(InvalidAdapter, match=r"is a pickle.*save_pretrained"):
        read_trained(tmp_path)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(config_bytes=10), "over the limit of 10 bytes"),
        (Limits(header_bytes=10), "is over 10"),
        (Limits(tensors=3), "allowed are 1 to 3"),
        (Limits(name_chars=20), "allowed are 20"),
        (Limits(elements=50), "over 50 numbers"),
        (Limits(rank=5), "over the limit of 5"),
        (Limits(work=36 * 719), r"is 2.6e\+04, over the limit"),
    ],
)
def test_limits_are_held(tmp_path, limits, message):
    save_trained("llama_gqa_lm", tmp_path)

    with pytest.raises(InvalidAdapter, match=message):
        read_trained(tmp_path, limits=limits)


def test_a_head_that_was_trained_in_full_is_carried(tmp_path):
    """Whether the task or modules_to_save names it."""
    save_trained("bert_classifier", tmp_path, task_type="SEQ_CLS")
    heads = {f"{PREFIX}classifier.{kind}" for kind in ("weight", "bias")}
    assert set(read_trained(tmp_path).carried) == heads

    edit_config(tmp_path, task_type=None, modules_to_save=["classifier"])
    assert set(read_trained(tmp_path).carried) == heads

    edit_config(tmp_path, modules_to_save=None)
    with pytest.raises(InvalidAdapter, match=r"classifier\.\w+' is unexpected"):
        read_trained(tmp_path)


def test_errors_name_no_path(tmp_path):
    """A service shows them to whoever sent the adapter."""
    save_trained("llama_gqa_lm", tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    cases = [
        lambda: config.write_text("{"),
        lambda: config.write_text("[" * 100_000),
        lambda: config.write_text('{"r": NaN}'),
        lambda: config.write_text("[]"),
        config.unlink,
    ]
    for spoil in cases:
        spoil()
        with pytest.raises(InvalidAdapter) as error:
            read_trained(tmp_path)
        assert str(tmp_path) not in str(error.value)
    config.write_text(json.dumps({"peft_type": "LORA", "target_modules": []}))
    save_file({"x": torch.ones(1)}, weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidAdapter, match="no sound safetensors file") as error:
        read_trained(tmp_path)
    assert str(tmp_path) not in str(error.value)
