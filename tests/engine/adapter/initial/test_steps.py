"""Initial weights that are a step down the mean gradient: the update that stock PEFT makes of
them is the source's, whatever the plan's scale, against autograd's full gradients in float64.
"""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from fimlora import load_plan, write_adapter
from fimlora.adapter.initial.choose import initial_weights
from fimlora.errors import InvalidOption
from fimlora.numerics.seeded_draws import draw_lora_a
from support.initial import SEED, case_of, write_case
from support.peft_models import updates
from support.reference import relative_error

FLOAT32 = 1e-5
NAMES = ("bert_classifier", "gpt2_lm", "llama_gqa_lm")
INITS = ("lora-one", "gora")


def lora_one(G, module, rank):
    """alpha 16 with rsLoRA, gamma 128: the best step of its rank, over the largest value."""
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    return -16 / rank**0.5 * best / (128 * S[0])


def gora(G, module, rank):
    """As the published code multiplies it out, but for its sign; its alpha and rank cancel."""
    A = draw_lora_a(module, rank=rank, seed=SEED).double()
    alpha, mean_rank = 16, 5
    xi = 5e-2 / (rank / module.d_in) ** 0.5 * mean_rank
    inverse = torch.linalg.pinv(A @ A.T + 1e-8 * torch.eye(rank).double())
    B = -G @ A.T @ inverse * xi / alpha
    return alpha / mean_rank * B @ A


WANTED = {"lora-one": lora_one, "gora": gora}


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", NAMES)
def test_the_update_is_the_source_s(name, init, layout, tmp_path):
    """Loaded by stock PEFT, of every module, in both layouts; the base model is untouched."""
    case = case_of(name)
    before = {n: p.clone() for n, p in case.model.named_parameters()}
    write_case(case, name, tmp_path / "a", init=init, layout=layout)

    loaded = PeftModel.from_pretrained(case.model, tmp_path / "a")

    found = updates(loaded)
    for module in case.plan.modules:
        G, rank = case.gradients[module.name], case.plan.ranks[module.name]
        wanted = WANTED[init](G, module, rank)
        wanted = wanted.T if module.fan_in_fan_out else wanted
        assert relative_error(found[module.name], wanted) <= FLOAT32, module.name
    for n, p in loaded.get_base_model().named_parameters():
        if ".lora_" not in n and "modules_to_save" not in n:
            plain = n.replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(p, before[plain]), n


@pytest.mark.parametrize("init", INITS)
def test_another_scale_gives_the_same_update(init, tmp_path):
    """The scale is the plan's; what is begun with does not follow it."""
    found = []
    for scale in (1, 8):
        case = case_of("llama_gqa_lm", scale=scale)
        write_case(case, "llama_gqa_lm", tmp_path / str(scale), init=init)
        loaded = PeftModel.from_pretrained(case.model, tmp_path / str(scale))
        found.append(updates(loaded))

    for name, update in found[0].items():
        assert relative_error(found[1][name], update) <= 1e-5
        assert update.any()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", NAMES)
def test_the_step_goes_downhill(name, init, tmp_path):
    """The first-order change of the mean loss is negative, for every module."""
    case = case_of(name)
    write_case(case, name, tmp_path / "a", init=init)

    found = updates(PeftModel.from_pretrained(case.model, tmp_path / "a"))

    for module in case.plan.modules:
        update = found[module.name].double()
        update = update.T if module.fan_in_fan_out else update
        assert (update * case.gradients[module.name]).sum() < 0, module.name


@pytest.mark.parametrize("init", INITS)
def test_the_plan_says_first_that_it_does_not_start_at_the_base_model(init, tmp_path):
    """In the rank map that is written; a plan of LoRA's own weights says nothing of them."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init=init)
    write_case(case, "llama_gqa_lm", tmp_path / "plain", init="kaiming", weights=True)

    plan, plain = load_plan(tmp_path / "a"), load_plan(tmp_path / "plain")

    assert plan.warnings[0].code == "starts_moved"
    assert plan.warnings[0].message.startswith(f"initial weights {init} have taken a step")
    assert plan.provenance["initial"]["name"] == init
    assert not plan.provenance["initial"]["starts_as_base"]
    assert not plan.provenance["initial"]["changes_base"]
    assert plain.warnings == case.plan.warnings == ()
    assert "initial" not in plain.provenance


def test_a_rank_beyond_the_gradient_s_directions_starts_as_lora_s_own():
    """It would be dead if A and B were both zero; the update is the best step all the same."""
    case = case_of("bert_classifier", ranks=[20])
    one = next(m for m in case.plan.modules if m.name.endswith("1.output.dense"))
    short = {
        group: {name: array.copy() for name, array in arrays.items()}
        for group, arrays in case.statistics.quantities.items()
    }
    short["gradient_left"][one.name][:, 4:] = 0
    short["gradient_values"][one.name][4:] = 0
    short["gradient_right"][one.name][4:] = 0
    statistics = replace(case.statistics, quantities=short)

    A, B = initial_weights(case.plan, "lora-one", statistics, seed=SEED)[one.name]

    drawn = draw_lora_a(one, rank=20, seed=SEED)
    assert torch.equal(A[4:], drawn[4:])
    assert not B[:, 4:].any()
    assert not torch.equal(A[:4], drawn[:4])
    assert B[:, :4].any(dim=0).all()


def refused(case, tmp_path, **options):
    """The sentence that a request is refused with; nothing is written."""
    options = {"statistics": case.statistics, "seed": SEED} | options
    with pytest.raises(InvalidOption) as caught:
        write_adapter(
            case.plan, tmp_path / "a", base_model="m", task_type="CAUSAL_LM", **options
        )
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


def test_what_cannot_be_made_is_refused_by_name(tmp_path):
    """Without statistics, without the record, for another seed, by an unknown name."""
    case = case_of("llama_gqa_lm")
    bare = replace(case.statistics, quantities={})

    assert "made of what was measured" in refused(case, tmp_path, init="gora", statistics=None)
    found = refused(case, tmp_path, init="lora-one", statistics=bare)
    assert "record='gradient_factors'" in found
    found = refused(case, tmp_path, init="gora", statistics=bare)
    assert "record='projected_gradient'" in found
    found = refused(case, tmp_path, init="gora", seed=4)
    assert "by the A of seed=3" in found
    assert "'kaiming', " in refused(case, tmp_path, init="pissa")
