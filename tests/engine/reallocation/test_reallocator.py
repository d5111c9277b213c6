"""The reallocator in the Trainer: budget, resume, random state, half precision, what it refuses."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from fimlora import FimLoraReallocator
from fimlora.errors import InvalidOption
from fimlora.plan import Budget
from fimlora.reallocation.reallocator import STATE_FILE
from support.models import tiny
from support.trained import layers_of
from support.trainer_runs import collate, make_examples, trainer_of

TARGETS = ["query", "value", "dense"]
N_STEPS = 12
MEASURED = [collate(make_examples(8)), collate(make_examples(13)[8:])]


def adapted(rank=4, **options):
    """A tiny classifier with dropout and a fresh adapter."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="SEQ_CLS",
        lora_dropout=0.1, **options,
    )  # fmt: skip
    return get_peft_model(tiny("bert_classifier")[0], config).train()


def parameters_of(model):
    return sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


class Watcher(TrainerCallback):
    """What happens around each reallocation: the random state, the learning rate, the losses."""

    def __init__(self):
        self.states, self.rates, self.seen = [], [], []

    def on_reallocation(self, step, plan, moved):
        self.seen.append((step, plan, moved))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.states.append(torch.get_rng_state())
        self.rates.append(optimizer.param_groups[0]["lr"])


def run(model, folder, *, every=4, n_steps=N_STEPS, resume=None, options=None, **settings):
    watcher = Watcher()
    callback = FimLoraReallocator(
        MEASURED, every=every, on_reallocation=watcher.on_reallocation, **settings
    )
    trainer = trainer_of(model, folder, [callback, watcher], n_steps=n_steps, **(options or {}))
    trainer.train(resume_from_checkpoint=resume)
    return watcher, trainer


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1}, {"bf16": True}]
)
def test_ranks_move_under_the_budget_and_training_goes_on(tmp_path, options):
    """Every so many optimizer steps, until three quarters; each plan spends what there was, or
    less by no more than a step."""
    model = adapted()
    limit = parameters_of(model)

    watcher, trainer = run(model, tmp_path, options=options)

    assert [step for step, _, _ in watcher.seen] == [4, 8]
    dearest = max(m.cost for m in watcher.seen[0][1].modules)
    for _, plan, moved in watcher.seen:
        assert limit - dearest < plan.spent.parameters <= limit
        assert moved.ranks
    _, plan, _ = watcher.seen[-1]
    assert {n: m.r["default"] for n, m in layers_of(model).items()} == plan.ranks
    assert len(set(plan.ranks.values())) > 1
    trained = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert trainer.state.global_step == N_STEPS


def test_the_rate_and_the_random_state_are_those_of_a_run_without(tmp_path):
    """Dropout draws what it would have drawn, the order of rows and the schedule are the same."""
    with_it, _ = run(adapted(), tmp_path / "a")
    without, _ = run(adapted(), tmp_path / "b", every=N_STEPS + 1)

    assert not without.seen
    assert with_it.rates == without.rates
    assert all(map(torch.equal, with_it.states, without.states))


def test_a_step_that_only_grows_changes_no_logit(tmp_path):
    """From rank 2 to a mean of 5 by a budget of its own: the trained function stays, to rounding."""
    model = adapted(2)
    trainer_of(model, tmp_path, [], n_steps=3).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    callback = FimLoraReallocator(MEASURED, every=1, budget=5, r_min=3)
    rows = MEASURED[0]
    with torch.no_grad():
        before = copy.deepcopy(model).eval()(**rows).logits

    plan, moved = callback.reallocate(model, optimizer, 3)

    assert not moved.errors
    assert plan.spent.ranks == 5 * len(plan.modules)
    with torch.no_grad():
        after = copy.deepcopy(model).eval()(**rows).logits
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert model.training


@pytest.mark.parametrize("stop", [3, 4, 6, 9])
def test_a_resumed_run_is_the_unbroken_one(tmp_path, stop):
    """Before, at and after reallocations: the adapter is loaded with the checkpoint's ranks."""
    unbroken = adapted()
    run(unbroken, tmp_path / "a")
    run(adapted(), tmp_path / "b", options={"save_strategy": "steps", "save_steps": stop})
    checkpoint = tmp_path / "b" / f"checkpoint-{stop}"
    torch.manual_seed(0)
    resumed = PeftModel.from_pretrained(
        tiny("bert_classifier")[0], checkpoint, is_trainable=True
    )

    run(resumed, tmp_path / "b", resume=str(checkpoint))

    wanted = dict(unbroken.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """The budget it had is not known."""
    run(adapted(), tmp_path, options={"save_strategy": "steps", "save_steps": 6})
    checkpoint = tmp_path / "checkpoint-6"
    kept = json.loads((checkpoint / STATE_FILE).read_text())
    (checkpoint / STATE_FILE).unlink()
    model = PeftModel.from_pretrained(tiny("bert_classifier")[0], checkpoint, is_trainable=True)

    assert kept == {"parameters": parameters_of(adapted())}
    with pytest.raises(InvalidOption, match=f"no readable {STATE_FILE}"):
        run(model, tmp_path, resume=str(checkpoint))


def test_the_saved_adapter_is_the_trained_one(tmp_path):
    """Stock PEFT loads the ranks it ended with."""
    model = adapted()
    _, trainer = run(model, tmp_path / "run")
    trainer.save_model(tmp_path / "adapter")
    rows = {k: v for k, v in MEASURED[0].items() if k != "labels"}

    loaded = PeftModel.from_pretrained(tiny("bert_classifier")[0], tmp_path / "adapter").eval()

    with torch.no_grad():
        wanted, found = (m(**rows).logits for m in (model.eval(), loaded))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_bfloat16_parameters_train_on(tmp_path):
    """An adapter in half precision, its optimizer's state too."""
    model = adapted().to(torch.bfloat16)

    watcher, _ = run(model, tmp_path)

    assert len(watcher.seen) == 2
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"r_min": 0}, "r_min=0"),
        ({"batches": iter(MEASURED)}, "batches is an iterator"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(options, message):
    """Before training begins."""
    with pytest.raises(InvalidOption, match=message):
        FimLoraReallocator(**({"batches": MEASURED, "every": 4} | options))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("_n_gpu", 2, "one process on one device"),
        ("load_best_model_at_end", True, "may have had other ranks than the last"),
    ],
)
def test_what_would_need_one_shape_throughout_is_refused(tmp_path, option, value, message):
    """Several processes, and another step's adapter at the end."""
    trainer = trainer_of(
        adapted(), tmp_path, [FimLoraReallocator(MEASURED, every=4)], n_steps=N_STEPS
    )
    setattr(trainer.args, option, value)

    with pytest.raises(InvalidOption, match=message):
        trainer.train()


def test_a_budget_of_ones_own_and_a_loader(tmp_path):
    """In any unit; a loader that does not shuffle gives the same batches each time."""
    loader = DataLoader(make_examples(8), batch_size=4, collate_fn=collate)
    model, seen = adapted(), []
    callback = FimLoraReallocator(
        loader, every=5, until=10, budget=Budget("parameters", 900), r_min=1,
        on_reallocation=lambda *what: seen.append(what),
    )  # fmt: skip
    trainer_of(model, tmp_path, [callback], n_steps=N_STEPS).train()

    assert [step for step, _, _ in seen] == [5, 10]
    assert all(800 < plan.spent.parameters <= 900 for _, plan, _ in seen)
