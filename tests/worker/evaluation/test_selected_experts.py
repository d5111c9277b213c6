"""Arms for some experts of a mixture: what trains, by the trainer that all arms have."""

from dataclasses import replace

import peft
import pytest
import torch

from fimlora import allocate, measure, score, select_experts, write_adapter
from fimlora.errors import AdapterMismatch
from fimlora.methods.expert_choice import ExpertChoice
from fimlora.model.experts.wrapped import carriers_of_parameters
from fimlora.plan import Budget
from fimlora_worker.evaluation.adapted import adapt, check_others_untouched
from fimlora_worker.evaluation.arms import Arm
from fimlora_worker.evaluation.data import order_of
from fimlora_worker.evaluation.runs import RunSpec
from fimlora_worker.evaluation.testing import held_out_metrics
from fimlora_worker.evaluation.training import train
from fimlora_worker.inputs.calibration_data import PaddedBatches
from fimlora_worker.inputs.models import load_model
from support.experts import LINEAR, mixture, mixture_batches
from support.model_folders import make_family
from support.training import loop, make_rows, make_task

pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
RATE = 1e-2
SPEC = RunSpec("fim", RATE, 3, "final")


@pytest.fixture(scope="module")
def statistics():
    """A mixture of four experts in each layer, as measured."""
    return measure(
        mixture("mixtral"), mixture_batches(), target_modules=[LINEAR],
        target_parameters="all", estimator="exact",
    )  # fmt: skip


@pytest.fixture(scope="module")
def task(statistics, tmp_path_factory):
    """Arms for the most routed half, for random halves, and for all experts."""
    folder = make_family(tmp_path_factory.mktemp("mixture"), mixture("mixtral"))
    budget = Budget("parameters", 6000)
    some = select_experts(statistics, "routed", share=0.5)
    control = ExpertChoice("routed", share=0.5).control
    randoms = [
        select_experts(statistics, "random", share=control.share, seed=seed)
        for seed in range(2)
    ]

    def solve(name, taken, method="fim"):
        plans = [allocate(score(each, method), budget, r_min=1) for each in taken]
        return Arm(name, tuple(plans))

    arms = {
        "fim": solve("fim", [some]),
        "uniform": solve("uniform", [statistics], "uniform"),
        "random": solve("random", [some], "random"),
        "random-experts": solve("random-experts", randoms),
    }
    rows = make_rows(40, label=None)
    return make_task(folder, rows, made=arms, arms=tuple(arms))


def test_a_run_is_what_stock_peft_trains_from_the_written_folder(task, tmp_path):
    """Its weights say which experts train; a loop by hand comes to the same loss."""
    plan = task.arms["fim"].plan(SPEC.seed)
    fused = [m for m in plan.modules if m.n_experts is not None]
    assert all(0 < len(m.experts) < m.n_experts for m in fused)
    base = load_model(task.model.folder, task.model.config, task.model.request).model
    write_adapter(
        plan, tmp_path / "a", base_model=None, task_type="CAUSAL_LM", model=base, weights=True,
        seed=SPEC.seed,
    )  # fmt: skip
    model = peft.PeftModel.from_pretrained(base, tmp_path / "a", is_trainable=True)
    size, n = task.settings.batch_size, task.settings.n_steps
    order = order_of(len(task.data.train), n * size, seed=SPEC.seed)
    ordered = [task.data.train[i] for i in order]
    loop(model, batches_of(ordered, size, task.pad_id), rate=RATE, n_warmup=1)

    result = train(SPEC, task, folder=tmp_path, on_step=lambda *_: None)

    tested = PaddedBatches(task.data.held_out, batch_size=size, pad_id=task.pad_id)
    wanted = held_out_metrics(model, tested, kind=task.kind, on_batch=lambda: None)
    assert result.loss == pytest.approx(wanted["loss"], rel=1e-5)
    assert result.adapter_parameters == plan.spent.parameters
    assert result.trainable_parameters == plan.spent.parameters


def batches_of(examples, size, pad_id):
    return list(PaddedBatches(examples, batch_size=size, pad_id=pad_id))


@pytest.mark.parametrize("arm", ["fim", "uniform", "random", "random-experts"])
def test_experts_that_are_not_selected_stay_as_they_are(task, arm):
    """To the last bit, under weight decay, merged into the model; those selected have moved."""
    plan = task.arms[arm].plan(1)
    base = load_model(task.model.folder, task.model.config, task.model.request).model
    adapted = adapt(task.model, plan, seed=1)
    assert adapted.adapter_parameters == plan.spent.parameters
    held = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    assert (held > plan.spent.parameters) is (arm != "uniform")

    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for batch in batches_of(task.data.train, 8, task.pad_id):
        optimizer.zero_grad()
        adapted.model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    check_others_untouched(adapted, plan)
    merged = adapted.model.merge_and_unload()
    n_moved = 0
    for module in (m for m in plan.modules if m.n_experts is not None):
        old, new = (m.get_parameter(module.name).detach() for m in (base, merged))
        for expert in range(module.n_experts):
            is_same = torch.equal(old[expert], new[expert])
            is_trained = module.experts is None or expert in module.experts
            assert is_same or is_trained
            n_moved += not is_same
    assert n_moved


def test_an_expert_that_was_trained_unasked_is_found(task):
    """By name and number, in A or in B."""
    plan = task.arms["fim"].plan(0)
    module = next(m for m in plan.modules if m.experts is not None)
    other = min({*range(module.n_experts)} - {*module.experts})
    for part in ("lora_A", "lora_B"):
        adapted = adapt(task.model, plan, seed=0)
        layer = carriers_of_parameters(adapted.model.get_base_model())[module.name]
        weight = getattr(layer, part)["default"].weight.data
        at = (other * plan.ranks[module.name], 0) if part == "lora_A" else (0, other)
        weight[at] = 1e-9

        with pytest.raises(AdapterMismatch, match=f"expert {other} of '{module.name}'"):
            check_others_untouched(adapted, plan)


def test_a_run_that_diverges_is_no_fault_of_the_selection(task, tmp_path):
    """Gradients that are no numbers are so for zeros, too."""
    result = train(
        replace(SPEC, learning_rate=1e30), task, folder=tmp_path, on_step=lambda *_: 0
    )
    assert result.has_diverged
