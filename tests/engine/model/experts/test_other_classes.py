"""Experts that transformers' decorator does not describe: each is run right here, or left out by name."""

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers.models
from torch import nn

from fimlora.left_out import OTHER_EXPERTS
from fimlora.model.experts.fused import fused_experts, is_experts, unfit_experts

CONFIG = SimpleNamespace(
    hidden_size=8, hidden_act="silu", expert_ffn_hidden_size=4, moe_intermediate_size=4,
    n_routed_experts=2, zero_expert_num=1, num_local_experts=2, n_shared_experts=2,
    intermediate_size=4,
)  # fmt: skip
# All there are in this transformers, and what they are made with.
OTHERS = {
    ("inkling", "InklingSharedExperts"): (CONFIG,),
    ("jetmoe", "JetMoeParallelExperts"): (2, 8, 4),
    ("longcat_flash", "LongcatFlashExperts"): (CONFIG,),
    ("step3p7", "Step3p7Experts"): (CONFIG,),
}
LLAMA4 = ("llama4", "Llama4TextExperts")


def undecorated():
    """Classes of experts with a parameter of three sizes, by the sources of all models."""
    for folder in transformers.models.__path__:
        for file in sorted(Path(folder).glob("*/modeling_*.py")):
            text = file.read_text(encoding="utf-8")
            if "Experts(" not in text:
                continue
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef) and node.name.endswith("Experts"):
                    source = ast.unparse(node)
                    said = " ".join(map(ast.unparse, node.decorator_list))
                    if "nn.Parameter(" in source and "use_experts_implementation" not in said:
                        yield file.parent.name, node.name


def test_these_are_all_the_classes_that_are_not_described():
    """A new one is looked at before it is measured."""
    assert {*undecorated()} == {*OTHERS, LLAMA4}


@pytest.mark.parametrize("place", OTHERS)
def test_experts_that_nobody_knows_are_left_out_by_name(place):
    """Each of their parameters is seen, and says why it is no target."""
    folder, name = place
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    model = nn.ModuleDict({"experts": getattr(module, name)(*OTHERS[place])})

    fused = fused_experts(model)

    assert {*fused} == {f"experts.{n}" for n, p in model["experts"].named_parameters()}
    assert not is_experts(model["experts"])
    assert unfit_experts(fused.keys(), fused) == dict.fromkeys(fused, OTHER_EXPERTS)
