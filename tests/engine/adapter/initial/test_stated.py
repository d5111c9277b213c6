"""What a plan says of the initial weights it is written with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from fimlora import load_plan, measure, write_adapter
from fimlora.adapter.initial.stated import with_initial
from fimlora.plan import PlanWarning
from support.initial import case_of
from support.models import PAD, VOCABULARY, make_batch
from support.plans import plan_of


@pytest.mark.parametrize("init", ["lora-one", "lora-ga"])
@pytest.mark.parametrize(("error", "n_warnings"), [(0.009, 2), (0.011, 3)])
def test_directions_that_are_not_resolved_are_said(init, error, n_warnings):
    """Behind what is to be minded at the start, with a module and the way out."""
    case = case_of("gpt2_lm")
    names = [module.name for module in case.plan.modules]
    errors = {name: np.array([0.0]) for name in names} | {names[1]: np.array([error])}
    quantities = case.statistics.quantities | {"gradient_errors": errors}
    plan = replace(case.plan, warnings=(PlanWarning("few_examples", "only 7"),))

    found = with_initial(plan, init, replace(case.statistics, quantities=quantities))

    assert found.provenance["initial"]["largest_error"] == error
    codes = [warning.code for warning in found.warnings]
    assert codes[0] in {"starts_moved", "base_changes"}
    assert codes[-1] == "few_examples"
    assert len(codes) == n_warnings
    if n_warnings == 3:
        assert codes[1] == "directions_unresolved"
        assert f"1 modules, such as {names[1]}" in found.warnings[1].message


def test_sketched_directions_are_written_with_their_error(tmp_path):
    """Where gradients of all targets are too large to be kept whole."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, hidden_size=800, num_hidden_layers=1,
        num_attention_heads=4, intermediate_size=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    options = {"target_modules": ["q_proj", "k_proj"], "record": "gradient_factors"}
    batches = [make_batch("llama_gqa_lm", [30, 9, 7, 3])]
    exact, sketched = (
        measure(model, batches, spectra_bytes=n_bytes, **options) for n_bytes in (2**30, 0)
    )
    plan = plan_of(sketched.modules, [6])

    for statistics, folder in ((exact, "exact"), (sketched, "sketched")):
        write_adapter(
            plan, tmp_path / folder, base_model="m", task_type="CAUSAL_LM",
            init="lora-one", statistics=statistics,
        )  # fmt: skip

    errors = {
        folder: load_plan(tmp_path / folder).provenance["initial"]["largest_error"]
        for folder in ("exact", "sketched")
    }
    assert errors["exact"] == 0 < errors["sketched"] < 0.01
    for module in sketched.modules:  # of fewer tokens than the sketch is wide
        whole, found = (
            s.quantities["gradient_left"][module.name][:, :6]
            * s.quantities["gradient_values"][module.name][:6]
            @ s.quantities["gradient_right"][module.name][:6]
            for s in (exact, sketched)
        )
        assert np.linalg.norm(whole - found) <= 1e-3 * np.linalg.norm(whole)
