"""Rank map and config as text, the same whether weights are beside them or not."""

import json

import pytest
from peft import PeftModel

from fimlora import load_plan
from fimlora.adapter.text_files import text_files
from support.adapters import config_of, write
from support.peft_models import lora_parameters


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier"])
def test_the_rank_map_counts_what_peft_trains(name, layout, tmp_path):
    """Also where padding and modules of rank 0 set plan and adapter apart."""
    model, plan = write(name, tmp_path / "a", ranks=[3, 9, 0], layout=layout, weights=True)
    adapter = json.loads((tmp_path / "a" / "rank_map.json").read_text())["adapter"]

    loaded = PeftModel.from_pretrained(model, tmp_path / "a", is_trainable=True)

    assert adapter == {
        "layout": layout,
        "width": 16 if layout == "C" else None,
        "trainable_parameters": lora_parameters(loaded),
    }
    assert (adapter["trainable_parameters"] > plan.spent.parameters) == (layout == "C")
    assert load_plan(tmp_path / "a") == plan


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("weights", [False, True])
def test_text_is_known_without_writing_an_adapter(layout, weights, tmp_path):
    """From plan and config alone come the bytes of the written files, weights or not."""
    _, plan = write("llama_gqa_lm", tmp_path / "a", layout=layout, weights=weights)

    files = text_files(plan, config_of(tmp_path / "a"), layout=layout)

    written = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    written.pop("adapter_model.safetensors", None)
    assert files == written
