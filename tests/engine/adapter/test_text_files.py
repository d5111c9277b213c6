"""Rank map and config as text, the same whether weights are beside them or not."""

import json

import pytest
from peft import PeftModel

from fimlora import load_plan
from support.adapters import write
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
