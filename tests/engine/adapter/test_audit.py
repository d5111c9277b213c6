"""What an adapter uses of its ranks, against SVDs in full and spectra that are known."""

import math

import numpy as np
import pytest
import torch

from fimlora import load_plan
from fimlora.adapter.audit import audit_adapter, effective_rank, rank_for
from fimlora.adapter.truncate import truncate_adapter
from support.adapters import write
from support.trained_adapters import edit_tensors, references, save_trained


def test_every_figure_is_that_of_the_whole_update(tmp_path):
    """Each from the SVD of the O x I matrix."""
    peft_model = save_trained("llama_gqa_lm", tmp_path)
    updates = references(tmp_path, peft_model)

    found = audit_adapter(tmp_path)

    unused = empty = 0
    for module in found.modules:
        values = torch.linalg.svdvals(updates[module.name])[:6]
        energy = values.square() / values.square().sum()
        assert module.largest == pytest.approx(float(values[0]))
        assert module.norm == pytest.approx(float(updates[module.name].norm()))
        entropy = float(torch.special.entr(energy).sum())
        assert module.effective_rank == pytest.approx(math.exp(entropy))
        for share, rank in (
            (0.9, module.rank_90),
            (0.95, module.rank_95),
            (0.99, module.rank_99),
        ):
            assert float(energy[:rank].sum()) >= share > float(energy[: rank - 1].sum())
        rank = int(torch.linalg.matrix_rank(updates[module.name], rtol=1e-6))
        assert module.numerical_rank == rank
        unused += sum(updates[module.name].shape) * (6 - module.rank_99)
        empty += sum(updates[module.name].shape) * (6 - rank)
    assert found.unused > 0
    assert found.unused == pytest.approx(unused / found.parameters)
    assert found.empty == pytest.approx(empty / found.parameters)
    assert f"{found.unused:.0%} of {found.parameters} parameters" in found.sentence


def test_known_spectra():
    """Equal values use all ranks, one alone uses one, zeros none."""
    assert effective_rank(np.full(5, 0.3)) == pytest.approx(5)
    assert effective_rank(np.array([2.0, 0.0])) == 1
    assert effective_rank(np.zeros(3)) == 0
    assert effective_rank(np.array([1e-200, 1e-200])) == pytest.approx(2)
    assert [rank_for(np.ones(10), share) for share in (0.9, 0.95, 1.0)] == [9, 10, 10]
    assert rank_for(np.zeros(2), 0.9) == 0


def test_ranks_that_were_never_used_are_empty(tmp_path):
    """Half of the columns of every B are zero."""
    save_trained("gpt2_lm", tmp_path, r=6)

    def empty(tensors):
        for key, tensor in tensors.items():
            if "lora_B" in key:
                tensor[:, 3:] = 0

    edit_tensors(tmp_path, empty)

    found = audit_adapter(tmp_path)
    assert {module.numerical_rank for module in found.modules} == {3}
    assert found.empty == pytest.approx(0.5)


def test_a_fresh_adapter_changes_nothing(tmp_path):
    """B is zero: no rank is used, and that is what the sentence says."""
    write("gpt2_lm", tmp_path / "a", weights=True)

    found = audit_adapter(tmp_path / "a")

    assert found.sentence.startswith("The adapter changes nothing")
    assert (found.unused, found.empty) == (1, 1)


def test_an_adapter_is_held_against_its_plan(tmp_path):
    """As written it is the plan; of another plan each difference is named."""
    save_trained("llama_gqa_lm", tmp_path / "in")
    truncate_adapter(tmp_path / "in", tmp_path / "two", budget=2)
    truncate_adapter(tmp_path / "in", tmp_path / "padded", budget=2, layout="C")
    truncate_adapter(tmp_path / "in", tmp_path / "three", budget=3, r_min=0)
    plan, other = load_plan(tmp_path / "two"), load_plan(tmp_path / "three")

    assert audit_adapter(tmp_path / "two", plan=plan).deviations == ()
    assert audit_adapter(tmp_path / "padded", plan=plan).deviations == ()
    found = audit_adapter(tmp_path / "two", plan=other)
    differing = {name for name in plan.ranks if plan.ranks[name] != other.ranks[name]}
    assert {said.split()[0] for said in found.deviations} == differing
    assert [m.planned for m in found.modules] == [other.ranks[m.name] for m in found.modules]


def test_another_scale_than_planned_is_named(tmp_path):
    from support.trained_adapters import edit_config

    save_trained("llama_gqa_lm", tmp_path / "in")
    truncate_adapter(tmp_path / "in", tmp_path / "out", budget=2)
    edit_config(tmp_path / "out", alpha_pattern={})

    deviations = audit_adapter(tmp_path / "out", plan=load_plan(tmp_path / "out")).deviations
    assert deviations
    assert all("planned is 2" in said for said in deviations)


def test_scales_that_follow_from_ranks_are_those_of_the_plan(tmp_path):
    """Stabilised ranks: one alpha over the root of each rank, as PEFT has it."""
    from dataclasses import replace

    from support.trained_adapters import edit_config

    save_trained("gpt2_lm", tmp_path / "in", r=4)
    truncate_adapter(tmp_path / "in", tmp_path / "out", budget=2)
    constant = load_plan(tmp_path / "out")
    plan = replace(constant, scaling="rslora", lora_alpha=5)
    edit_config(tmp_path / "out", use_rslora=True, lora_alpha=5, alpha_pattern={})

    assert audit_adapter(tmp_path / "out", plan=plan).deviations == ()
    assert len(audit_adapter(tmp_path / "out", plan=constant).deviations) > 0
