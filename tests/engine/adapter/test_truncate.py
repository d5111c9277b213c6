"""Trained adapters cut to a budget: as the SVD of every update in full, through stock PEFT."""

import itertools

import numpy as np
import pytest
import torch

from fimlora import Budget, InfeasibleBudget, load_plan
from fimlora.adapter.truncate import error_at, ranks_by_energy, truncate_adapter
from fimlora.errors import InvalidOption
from support.adapters import config_of
from support.trained_adapters import (
    edit_config,
    edit_tensors,
    references,
    reloaded,
    save_trained,
)


def best(update: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of a rank, from the SVD of the whole of it."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def relative(updates: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    apart = sum(float((updates[name] - wanted[name]).square().sum()) for name in wanted)
    return (apart / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5


def loaded(name: str, folder) -> dict[str, torch.Tensor]:
    """What PEFT adds to each weight, O x I in float64."""
    turned = name == "gpt2_lm"  # PEFT has the updates of Conv1D the other way round
    found = reloaded(name, folder)
    return {n: (u.T if turned else u).double() for n, u in found.items()}


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_classifier", {"task_type": "SEQ_CLS"}),
        ("gpt2_lm", {"task_type": "CAUSAL_LM"}),
        ("llama_gqa_lm", {"task_type": "CAUSAL_LM", "use_rslora": True}),
        ("llama_gqa_lm", {"rank_pattern": {"q_proj": 3, r".*0\.mlp\.(up|down)_proj": 2}}),
        ("llama_gqa_lm", {"alpha_pattern": {"1.self_attn.v_proj": 5}, "lora_alpha": 7}),
    ],
    ids=["classifier", "conv1d", "rslora", "rank-pattern", "alpha-pattern"],
)
def test_peft_loads_the_truncated_svd_of_every_update(tmp_path, name, options, layout):
    """To float32, whatever the layout, scale and orientation; and the stated errors are true."""
    peft_model = save_trained(name, tmp_path / "in", **options)
    updates = references(tmp_path / "in", peft_model)

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", budget=2, layout=layout)

    wanted = {n: best(update, found.plan.ranks[n]) for n, update in updates.items()}
    again = loaded(name, tmp_path / "out")
    assert relative(again, wanted) < 2e-7
    assert found.error == pytest.approx(relative(wanted, updates), rel=1e-9)
    assert found.error_written == pytest.approx(relative(again, updates), rel=1e-5)
    for module in found.modules:
        alone = {module.name: updates[module.name]}
        assert module.error == pytest.approx(relative(wanted, alone), abs=1e-12)
    assert found.plan.spent.ranks == 2 * len(updates)
    assert 0 < found.error < found.error_uniform


def test_no_other_ranks_of_the_budget_are_nearer(tmp_path):
    """Against all ranks that spend the same: a mean rank is met with the least error."""
    save_trained("gpt2_lm", tmp_path / "in", r=3)
    from fimlora.adapter.trained.read import read_trained
    from fimlora.adapter.trained.update import spectra_of

    spectra = spectra_of(read_trained(tmp_path / "in"))
    found = truncate_adapter(tmp_path / "in", tmp_path / "out", budget=2)
    every = (
        dict(zip(spectra, ranks, strict=True))
        for ranks in itertools.product((1, 2, 3), repeat=len(spectra))
        if sum(ranks) == 2 * len(spectra)
    )

    assert found.error == pytest.approx(min(error_at(spectra, ranks) for ranks in every))


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget("rank", 2.5), lambda plan: plan.spent.ranks == int(2.5 * len(plan.ranks))),
        (Budget("parameters", 1_700), lambda plan: 1_636 < plan.spent.parameters <= 1_700),
        (Budget("bytes", 6_800), lambda plan: 1_636 < plan.spent.parameters <= 1_700),
        (Budget("bytes", 3_400, 2), lambda plan: 1_636 < plan.spent.parameters <= 1_700),
    ],
    ids=["rank", "parameters", "bytes", "half-bytes"],
)
def test_budgets_of_every_unit_are_met(tmp_path, budget, spent):
    """Ranks exactly, all others up to less than a rank of the largest module (64)."""
    save_trained("bert_classifier", tmp_path / "in", task_type="SEQ_CLS")

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", budget=budget)

    assert spent(found.plan), found.plan.spent
    assert load_plan(tmp_path / "out").ranks == found.plan.ranks


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_the_energy_asked_for_is_kept_by_one_threshold(tmp_path, energy):
    """What is kept is not below what is cut, and without the last step it would not do."""
    peft_model = save_trained("llama_gqa_lm", tmp_path / "in")
    updates = references(tmp_path / "in", peft_model)
    values = {name: torch.linalg.svdvals(update).numpy() for name, update in updates.items()}

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", energy=energy, r_min=0)

    kept = np.concatenate([values[n][:r] for n, r in found.plan.ranks.items()])
    cut = np.concatenate([values[n][r:] for n, r in found.plan.ranks.items()])
    whole = np.square(np.concatenate([*values.values()])).sum()
    assert kept.min() >= cut.max() - 1e-9
    assert np.square(kept).sum() / whole >= energy - 1e-12
    assert (np.square(kept).sum() - kept.min() ** 2) / whole < energy
    assert loaded("llama_gqa_lm", tmp_path / "out").keys() == {
        name for name, rank in found.plan.ranks.items() if rank
    }


def test_every_module_keeps_a_rank_unless_it_may_go():
    """Also one far below the threshold; zeros alone are never counted."""
    spectra = {"a": np.array([5.0, 4.0]), "b": np.array([1e-3, 0.0]), "c": np.zeros(2)}

    assert ranks_by_energy(spectra, 1.0) == {"a": 2, "b": 1, "c": 0}
    assert ranks_by_energy(spectra, 0.9, r_min=1) == {"a": 2, "b": 1, "c": 1}
    assert ranks_by_energy({"c": np.zeros(2)}, 0.9) == {"c": 0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_its_rounding_stated(tmp_path, dtype):
    """The tensors have the type they had; the error that is stated is that of the file."""
    peft_model = save_trained("llama_gqa_lm", tmp_path / "in", dtype=dtype)
    updates = references(tmp_path / "in", peft_model)

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", budget=5)

    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    written = {
        name: float(found.plan.scale)
        * tensors[f"base_model.model.{name}.lora_B.weight"].double()
        @ tensors[f"base_model.model.{name}.lora_A.weight"].double()
        for name in updates
    }
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert found.error_written == pytest.approx(relative(written, updates), rel=1e-9)
    assert found.error_written > found.error


def test_what_is_not_cut_stays_as_it_was(tmp_path):
    """To the byte: modules that keep their rank, and the head that was trained in full."""
    save_trained("bert_classifier", tmp_path / "in", task_type="SEQ_CLS")
    edit_config(tmp_path / "in", lora_dropout=0.25, revision="abc")

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", budget=5)

    from safetensors.torch import load_file

    before = load_file(tmp_path / "in" / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    same = [m.name for m in found.modules if m.rank == m.rank_before]
    heads = [key for key in before if "lora_" not in key]
    assert len(same) == found.n_untouched > 0
    assert heads
    for key in heads + [f"base_model.model.{n}.lora_{f}.weight" for n in same for f in "AB"]:
        assert torch.equal(before[key], after[key])
    from support.adapters import config_of

    config = config_of(tmp_path / "out")
    assert (config["lora_dropout"], config["revision"]) == (0.25, "abc")
    assert sorted(config["target_modules"]) == ["dense", "key", "query", "value"]


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    """Twice, and whatever the order of tensors in the file was."""
    save_trained("gpt2_lm", tmp_path / "in")
    truncate_adapter(tmp_path / "in", tmp_path / "one", budget=2)
    edit_tensors(
        tmp_path / "in",
        lambda tensors: [tensors.update({k: tensors.pop(k)}) for k in [*tensors][::-1]],
    )
    truncate_adapter(tmp_path / "in", tmp_path / "two", budget=2)

    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_budget_beyond_the_adapter_names_what_there_is(tmp_path):
    """A truncation takes ranks away; the interval is that of this adapter."""
    save_trained("gpt2_lm", tmp_path / "in", r=4)

    with pytest.raises(InfeasibleBudget, match=r"rank from 1 to 4.*only takes ranks away"):
        truncate_adapter(tmp_path / "in", tmp_path / "out", budget=9)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a budget or the energy"),
        ({"budget": 2, "energy": 0.5}, "a budget or the energy"),
        ({"energy": 0}, "above 0 and at most 1"),
        ({"energy": 0.5, "multiple_of": 2}, "needs a budget"),
        ({"budget": 2, "r_min": -1}, "r_min=-1"),
        ({"budget": 2, "r_min": 3, "r_max": 2}, "above r_max"),
        ({"budget": Budget("fraction", 0.5)}, "base_parameters"),
        ({"budget": 2, "max_bytes": 100}, "over the limit of 100"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, message):
    save_trained("gpt2_lm", tmp_path / "in", r=4)

    with pytest.raises(InvalidOption, match=message):
        truncate_adapter(tmp_path / "in", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_rank_without_strength_can_still_be_trained(tmp_path):
    """The update of a module is zero, and it keeps a rank: A is not zero, so B has a gradient."""
    peft_model = save_trained("gpt2_lm", tmp_path / "in", r=4)
    edit_tensors(
        tmp_path / "in", lambda t: [v.zero_() for k, v in t.items() if "c_proj.lora_B" in k]
    )
    updates = references(tmp_path / "in", peft_model)

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", budget=2)

    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    empty = [name for name in updates if name.endswith("c_proj")]
    assert {found.plan.ranks[name] for name in empty} == {1}
    for name in empty:
        A, B = (stored[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        assert float(A.norm()) == pytest.approx(3**-0.5)
        assert not B.any()
    wanted = {n: best(update, found.plan.ranks[n]) for n, update in updates.items()}
    assert relative(loaded("gpt2_lm", tmp_path / "out"), wanted) < 2e-7


def test_energy_that_the_highest_rank_forbids_is_told(tmp_path):
    """What is kept, what was asked for and what stood in the way; nothing where it is kept."""
    peft_model = save_trained("llama_gqa_lm", tmp_path / "in")
    updates = references(tmp_path / "in", peft_model)
    values = [torch.linalg.svdvals(update).numpy() ** 2 for update in updates.values()]
    wanted = sum(v[0] for v in values) / sum(v.sum() for v in values)

    short = truncate_adapter(tmp_path / "in", tmp_path / "a", energy=0.99, r_max=1)
    whole = truncate_adapter(tmp_path / "in", tmp_path / "b", energy=0.99)

    assert short.energy_kept == pytest.approx(wanted, rel=1e-6)
    assert f"Kept is {wanted:.4%} of the energy and not the 99.0000%" in short.sentence
    assert "r_max=1 stands in the way" in short.sentence
    assert short.to_json()["energy_kept"] == short.energy_kept < short.to_json()["energy_asked"]
    assert whole.energy_kept >= 0.99
    assert "stands in the way" not in whole.sentence


def test_every_alpha_is_an_integer(tmp_path):
    """Of rsLoRA, whose scale is no integer."""
    options = {"lora_alpha": 16, "use_rslora": True, "r": 8}
    peft_model = save_trained("llama_gqa_lm", tmp_path / "in", **options)

    found = truncate_adapter(tmp_path / "in", tmp_path / "out", energy=1, r_min=0)

    config = config_of(tmp_path / "out")
    alphas = [config["lora_alpha"], *config["alpha_pattern"].values()]
    assert {type(alpha) for alpha in alphas} == {int}
    assert "became 6 and the rest is in the matrices" in found.sentence
    again = reloaded("llama_gqa_lm", tmp_path / "out")
    for name, update in references(tmp_path / "in", peft_model).items():
        torch.testing.assert_close(again[name].double(), update, rtol=1e-5, atol=1e-5)
