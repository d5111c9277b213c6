"""Another layout, the same function: to the bit where the scale stays."""

import pytest
import torch
from safetensors.torch import load_file

from fimlora import load_plan
from fimlora.adapter.convert import convert_adapter
from fimlora.errors import InvalidAdapter, InvalidOption
from support.adapters import config_of
from support.trained_adapters import edit_tensors, references, reloaded, save_trained

PATTERN = {"rank_pattern": {"q_proj": 3, "up_proj": 5}}
CONSTANT = PATTERN | {"alpha_pattern": {"q_proj": 6, "up_proj": 10}}


def tensors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_the_same_to_the_bit(tmp_path, dtype):
    """From B to C and to B again: equal tensors, and equal updates on the way."""
    save_trained("llama_gqa_lm", tmp_path / "b", dtype=dtype, **CONSTANT)

    to_c = convert_adapter(tmp_path / "b", tmp_path / "c", layout="C")
    back = convert_adapter(tmp_path / "c", tmp_path / "again", layout="B")

    before, padded, after = (tensors_of(tmp_path / name) for name in ("b", "c", "again"))
    assert (to_c.error, back.error, to_c.width) == (0, 0, 8)
    assert before.keys() == after.keys() == padded.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {t.shape[0 if "lora_A" in key else 1] for key, t in padded.items()} == {8}
    assert (config_of(tmp_path / "c")["rank_pattern"], config_of(tmp_path / "c")["r"]) == (
        {},
        8,
    )
    assert len(config_of(tmp_path / "again")["rank_pattern"]) == 4
    first, second = (reloaded("llama_gqa_lm", tmp_path / name) for name in ("b", "c"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-6)


def test_scales_that_differ_become_one(tmp_path):
    """A rank pattern alone gives each rank its own scale: B takes the difference over."""
    peft_model = save_trained("llama_gqa_lm", tmp_path / "a", **PATTERN)
    updates = references(tmp_path / "a", peft_model)

    found = convert_adapter(tmp_path / "a", tmp_path / "b")

    again = reloaded("llama_gqa_lm", tmp_path / "b")
    config = config_of(tmp_path / "b")
    assert config["rank_pattern"].keys() == config["alpha_pattern"].keys()
    assert {config["alpha_pattern"][k] / r for k, r in config["rank_pattern"].items()} == {2}
    assert 0 < found.error < 1e-7
    for name, update in updates.items():
        torch.testing.assert_close(again[name].double(), update, rtol=1e-5, atol=1e-6)


def test_a_fresh_adapter_keeps_its_ranks(tmp_path):
    """Its B is zero, but A is not: those ranks are no padding."""
    from support.adapters import RANKS, write

    _, plan = write("gpt2_lm", tmp_path / "b", weights=True)
    convert_adapter(tmp_path / "b", tmp_path / "c", layout="C")
    found = convert_adapter(tmp_path / "c", tmp_path / "again")

    assert found.ranks == plan.ranks
    assert set(RANKS) == set(found.ranks.values())


def test_what_cannot_be_written_is_refused(tmp_path):
    """An unknown layout, ranks beyond all padding, a file that would be too large."""
    save_trained("llama_gqa_lm", tmp_path / "in")
    save_trained("gpt2_lm", tmp_path / "wide", r=300)

    with pytest.raises(InvalidOption, match="allowed are B, C"):
        convert_adapter(tmp_path / "in", tmp_path / "out", layout="D")
    with pytest.raises(InvalidOption, match="at most rank 256"):
        convert_adapter(tmp_path / "wide", tmp_path / "out", layout="C")
    with pytest.raises(InvalidOption, match="over the limit of 1000"):
        convert_adapter(tmp_path / "in", tmp_path / "out", layout="C", max_bytes=1_000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["B", "C"])
def test_adalora_becomes_plain_lora(tmp_path, layout):
    """A checkpoint of PEFT's own: equal logits; modules that kept no rank are named."""
    from peft import AdaLoraConfig, PeftModel, get_peft_model

    from support.models import make_batch, tiny

    model, targets = tiny("bert_classifier")
    options = {"init_r": 6, "target_r": 3, "total_step": 10, "lora_alpha": 9}
    config = AdaLoraConfig(target_modules=targets, task_type="SEQ_CLS", **options)
    adapted = get_peft_model(model, config).eval()
    draws = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=draws) * 0.3
            is_cut = "lora_E" in name and (torch.arange(6) % 3 == 0)[:, None]
            parameter.data = torch.where(is_cut, 0, drawn) if "lora_E" in name else drawn
            if "pooler.dense.lora_E" in name:
                parameter.data.zero_()
    adapted.save_pretrained(tmp_path / "in")
    inputs = {
        k: v for k, v in make_batch("bert_classifier", [9, 5, 3]).items() if k != "labels"
    }
    wanted = adapted(**inputs).logits

    found = convert_adapter(tmp_path / "in", tmp_path / "out", layout=layout)

    plain = PeftModel.from_pretrained(tiny("bert_classifier")[0], tmp_path / "out").eval()
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(plain(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)
    assert list(found.left_out) == ["bert.pooler.dense"]
    assert set(found.ranks.values()) == {4}
    assert "1 kept no rank; AdaLoRA's function in float32" in found.sentence


@pytest.mark.parametrize("layout", ["B", "C"])
def test_an_adapter_of_zeros_keeps_its_ranks(tmp_path, layout):
    """Nothing tells its ranks from padding, so none is taken off."""
    from support.adapters import write

    _, plan = write("gpt2_lm", tmp_path / "in", weights=True, init="zeros")

    found = convert_adapter(tmp_path / "in", tmp_path / "out", layout=layout)
    again = convert_adapter(tmp_path / "out", tmp_path / "again")

    assert found.ranks == plan.ranks
    assert again.ranks == (plan.ranks if layout == "B" else dict.fromkeys(plan.ranks, 8))
    assert load_plan(tmp_path / "again").warnings[0].code == "does_not_train"


def test_variable_ranks_are_kept_zeros_or_not(tmp_path):
    """Only one rank throughout can be padded: a rank that training left at zero stays a rank."""
    save_trained("llama_gqa_lm", tmp_path / "in", **CONSTANT)

    def empty_last(tensors):
        for key, tensor in tensors.items():
            (tensor if "lora_A" in key else tensor.T)[-1] = 0

    edit_tensors(tmp_path / "in", empty_last)

    found = convert_adapter(tmp_path / "in", tmp_path / "out")

    assert set(found.ranks.values()) == {3, 5, 6}


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize(
    ("options", "scale"),
    [({"lora_alpha": 16, "use_rslora": True, "r": 8}, 6), ({"lora_alpha": 1, "r": 6}, 1)],
)
def test_every_alpha_is_an_integer(tmp_path, layout, options, scale):
    """Some readers take no other; the rest of the scale is in B, and the sentence says so."""
    peft_model = save_trained("llama_gqa_lm", tmp_path / "in", **options)
    updates = references(tmp_path / "in", peft_model)

    found = convert_adapter(tmp_path / "in", tmp_path / "out", layout=layout)

    config = config_of(tmp_path / "out")
    alphas = [config["lora_alpha"], *config["alpha_pattern"].values()]
    assert {type(alpha) for alpha in alphas} == {int}
    assert config["lora_alpha"] == scale * config["r"]
    assert f"became {scale} and the rest is in the matrices" in found.sentence
    again = reloaded("llama_gqa_lm", tmp_path / "out")
    for name, update in updates.items():
        torch.testing.assert_close(again[name].double(), update, rtol=1e-5, atol=1e-6)


def test_a_rank_map_that_cannot_be_read_is_refused(tmp_path):
    """It might say that the base model changes."""
    save_trained("llama_gqa_lm", tmp_path / "in")
    for content in ("{", "[]", '{"provenance": {"initial": {"name": "else"}}}'):
        (tmp_path / "in" / "rank_map.json").write_text(content)
        with pytest.raises(InvalidAdapter, match="initial weights"):
            convert_adapter(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
