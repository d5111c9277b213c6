"""The table of initial weights, and what it refuses before anything is measured."""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel

from fimlora import load_plan
from fimlora.adapter.initial.checks import check_ceiling
from fimlora.adapter.initial.registry import (
    INITS,
    changes_base,
    find_initial,
    init_passes,
    init_records,
)
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora.statistics.options import Passes, Record
from support.adapters import write
from support.initial import case_of, write_case
from support.models import make_batch
from support.peft_models import lora_tensors

WIDE, NARROW = TargetModule("wide", 100, 90), TargetModule("narrow", 100, 64)


def test_only_lora_ga_changes_the_base_model():
    """And only gradients need backward passes."""
    assert [name for name in INITS if changes_base(name)] == ["lora-ga"]
    assert init_records("gora") == {Record.PROJECTED_GRADIENT}
    assert init_records("lora-one") == init_records("lora-ga") == {Record.GRADIENT_FACTORS}
    for name in INITS:
        assert (init_passes(name) is Passes.NONE) == (not init_records(name))


@pytest.mark.parametrize(
    ("name", "most"), [("eva", 64), ("lora-ga", 32), ("lora-one", 64), ("gora", 64)]
)
def test_a_ceiling_beyond_what_is_recorded_is_refused(name, most):
    """Of wide modules only: of a narrow one all directions are recorded."""
    both = [NARROW, WIDE]
    check_ceiling(name, both, {"wide": most, "narrow": 1000})
    check_ceiling("kaiming", both, {"wide": 1000, "narrow": 1000})

    with pytest.raises(InvalidOption, match=f"'wide' have more: give r_max={most} or less"):
        check_ceiling(name, both, {"wide": most + 1, "narrow": 8})


def test_an_unknown_name_is_refused_with_the_known_ones():
    """So that a typing error costs no measurement."""
    with pytest.raises(InvalidOption, match="init='pissa'; allowed are 'kaiming'"):
        find_initial("pissa")


def test_the_table_loads_neither_numpy_nor_torch():
    """Who only asks for names starts fast."""
    script = (
        "import sys, fimlora.adapter.initial.registry as r\n"
        "assert r.INITS and not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("layout", ["B", "C"])
def test_zeros_are_the_base_model_and_do_not_train(layout, tmp_path):
    """No gradient reaches A or B; the plan says so first."""
    case = case_of("gpt2_lm")
    logits = case.model(**case.batch).logits
    write_case(case, "gpt2_lm", tmp_path / "a", init="zeros", layout=layout)

    loaded = PeftModel.from_pretrained(case.model, tmp_path / "a", is_trainable=True)
    loaded.eval()(**case.batch).loss.backward()

    assert torch.equal(loaded(**case.batch).logits, logits)
    assert not any(t.any() for t in lora_tensors(loaded).values())
    gradients = [p.grad for n, p in loaded.named_parameters() if ".lora_" in n]
    assert gradients
    assert not any(g.any() for g in gradients)
    assert load_plan(tmp_path / "a").warnings[0].code == "does_not_train"


def test_the_head_is_in_the_file_whatever_the_initial_weights(tmp_path):
    """A classifier loads with its head, and starts with the logits it had."""
    model, _ = write("bert_classifier", tmp_path / "a", init="zeros")
    batch = make_batch("bert_classifier", [5, 3])
    logits = model(**batch).logits

    loaded = PeftModel.from_pretrained(model, tmp_path / "a")

    assert torch.equal(loaded.eval()(**batch).logits, logits)
