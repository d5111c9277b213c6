"""AdaLoRA in the Trainer: ranks fall to the target, a resumed run is the unbroken one."""

import json

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, TrainerCallback

from fimlora.adapter.adalora import adalora_config
from fimlora.adapter.adalora_convert import plain_lora
from fimlora.adapter.adalora_reallocation import (
    STATE_FILE,
    AdaLoraReallocation,
    adalora_ranks,
)
from fimlora.errors import InvalidOption, MissingGradient
from support.models import minilm_path, tiny
from support.trainer_runs import collate, make_examples, trainer_of

TARGETS = ["query", "value"]
N_STEPS = 24


class Ranks(TrainerCallback):
    """Keeps the sum of ranks after every step."""

    def __init__(self):
        self.sums = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.sums.append(sum(adalora_ranks(model).values()))


def tiny_adalora(n_steps=N_STEPS, **options):
    torch.manual_seed(0)
    options = {"target_r": 2, "task_type": "SEQ_CLS", **options}
    config = adalora_config(TARGETS, total_steps=n_steps, **options)
    return get_peft_model(tiny("bert_classifier")[0].train(), config)


@pytest.fixture(scope="module")
def minilm_run(tmp_path_factory):
    """MiniLM, trained for a while with accumulation, and saved."""
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=3)
    head = {n: p.detach().clone() for n, p in base.named_parameters() if "classifier" in n}
    config = adalora_config(
        TARGETS, total_steps=N_STEPS, target_r=2, accumulation_steps=2, task_type="SEQ_CLS"
    )
    model, seen = get_peft_model(base, config), Ranks()
    trainer = trainer_of(
        model,
        folder / "runs",
        [AdaLoraReallocation(), seen],
        n_steps=N_STEPS,
        gradient_accumulation_steps=2,
        vocabulary=30_000,
    )
    trainer.train()
    trainer.save_model(folder / "adalora")
    logits = logits_of(model)
    budgets = [model.base_model.rankallocator.budget_schedule(i + 1) for i in range(N_STEPS)]
    return folder, head, config, (seen.sums, budgets), logits, adalora_ranks(model)


def logits_of(model):
    rows = collate(make_examples(8, vocabulary=30_000))
    del rows["labels"]  # with these, PEFT asks AdaLoRA that was loaded for its training state
    with torch.no_grad():
        return model.eval()(**rows).logits


def fresh_minilm(head):
    base = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=3)
    base.load_state_dict(head, strict=False)
    return base


def test_ranks_of_minilm_fall_to_the_target(minilm_run):
    """At every cut their sum is the budget of PEFT's schedule; not all modules end alike."""
    _, _, config, (sums, budgets), _, ranks = minilm_run

    n, last = len(ranks), N_STEPS - config.tfinal
    assert n == 12
    assert sums[config.tinit - 1] == config.init_r * n
    cuts = [i for i in range(last) if budgets[i][1]] + [last - 1]
    assert len(cuts) > 3
    assert [sums[i] for i in cuts] == [budgets[i][0] for i in cuts]
    assert sums[last - 1 :] == [config.target_r * n] * (config.tfinal + 1)
    assert len(set(ranks.values())) > 1


# PEFT's own: it reads the list of AdaLoRA's rows as if it were LoRA's pattern of ranks.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
def test_the_saved_adapter_loads_in_stock_peft(minilm_run):
    """Only the ranks that are left are saved, and the logits are the trained ones."""
    folder, head, _, _, logits, ranks = minilm_run

    tensors = load_file(folder / "adalora" / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(fresh_minilm(head), folder / "adalora").eval()
    found = logits_of(loaded)

    assert sum(len(t) for n, t in tensors.items() if "lora_E" in n) == sum(ranks.values())
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2, 0.75])
def test_converted_to_plain_lora_minilm_says_the_same(minilm_run, tmp_path, scale):
    """Stock PEFT's logits of the converted adapter equal those of the trained one."""
    folder, head, _, _, logits, ranks = minilm_run

    tensors = load_file(folder / "adalora" / "adapter_model.safetensors")
    config = json.loads((folder / "adalora" / "adapter_config.json").read_text())
    plain = plain_lora(tensors, config, scale=scale)
    named = {}
    for name, (A, B) in plain.matrices.items():
        named[f"base_model.model.{name}.lora_A.weight"] = A
        named[f"base_model.model.{name}.lora_B.weight"] = B
    save_file(named | dict(plain.others), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain.config))
    loaded = PeftModel.from_pretrained(fresh_minilm(head), tmp_path).eval()
    found = logits_of(loaded)

    assert {n: len(A) for n, (A, _) in plain.matrices.items()} == {
        n: r for n, r in ranks.items() if r
    }
    layers = [m for m in loaded.modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["default"] for layer in layers} == {scale}
    torch.testing.assert_close(found, logits, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A model that was trained in one go."""
    model = tiny_adalora(tfinal=4)
    run(model, tmp_path_factory.mktemp("unbroken"))
    return model


@pytest.mark.parametrize("stop", [3, 10, 19, 22, 23])
def test_a_resumed_run_is_the_unbroken_one(tmp_path, unbroken, stop):
    """Resumed before, inside and past the window, and right at its end: the same bits."""
    saved = tiny_adalora(tfinal=4)
    run(saved, tmp_path / "b", save_strategy="steps", save_steps=stop)
    resumed = tiny_adalora(tfinal=4)
    checkpoint = tmp_path / "b" / f"checkpoint-{stop}"
    trainer_of(resumed, tmp_path / "b", [AdaLoraReallocation()], n_steps=N_STEPS).train(
        resume_from_checkpoint=str(checkpoint)
    )

    expected = dict(unbroken.named_parameters())
    assert sum(adalora_ranks(resumed).values()) == 2 * 4
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def run(model, folder, **options):
    trainer_of(model, folder, [AdaLoraReallocation()], n_steps=N_STEPS, **options).train()


def test_stock_peft_crashes_where_the_callback_resumes(tmp_path):
    """Past the window a fresh model has no pattern: what the state file is for."""
    model = tiny_adalora(tfinal=4)

    with pytest.raises(AttributeError):
        model.base_model.update_and_allocate(22)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Without what was weighed, ranks would be cut by nothing; the file is asked for by name."""
    model = tiny_adalora()
    run(model, tmp_path, save_strategy="steps", save_steps=10)
    (tmp_path / "checkpoint-10" / STATE_FILE).unlink()
    again = trainer_of(tiny_adalora(), tmp_path, [AdaLoraReallocation()], n_steps=N_STEPS)

    with pytest.raises(InvalidOption, match="resumes at step 10, and its checkpoint has no"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_orthogonality_term_counts_once_whatever_the_accumulation(tmp_path, accumulation):
    """E's gradient aside, a step moves A as one term of the whole weight would."""
    weight = 0.5
    model = tiny_adalora(accumulation_steps=accumulation, orth_reg_weight=weight)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
    trainer = trainer_of(
        model,
        tmp_path,
        [AdaLoraReallocation(), Halt()],
        n_steps=N_STEPS,
        optim="sgd",
        gradient_accumulation_steps=accumulation,
        lr_scheduler_type="constant",
        learning_rate=1e-2,
        max_grad_norm=0,
    )
    trainer.train()  # at E = 0 the task's loss gives A no gradient: all that moves it is the term

    n = 2 * len(before)
    for name, A in before.items():
        start = A.requires_grad_()
        (weight / n * torch.norm(start @ start.T - torch.eye(len(start)))).backward()
        moved = dict(model.named_parameters())[name] - start
        torch.testing.assert_close(moved, -1e-2 * start.grad, rtol=2e-3, atol=1e-9)


class Halt(TrainerCallback):
    """Ends training after so many steps."""

    def __init__(self, after=1):
        self.after = after

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.after


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
def test_a_run_that_is_stopped_between_two_cuts_saves_what_it_has(tmp_path):
    """Rows that the steps since the last cut have brought back are saved with the others."""
    model = tiny_adalora(delta_t=4, tinit=4, tfinal=4)
    trainer = trainer_of(
        model, tmp_path / "runs", [AdaLoraReallocation(), Halt(10)], n_steps=N_STEPS
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    rows = collate(make_examples(8))
    del rows["labels"]

    loaded = PeftModel.from_pretrained(tiny("bert_classifier")[0], tmp_path / "adapter").eval()

    assert sum(adalora_ranks(model).values()) == 3 * 4  # the cut at step 8 does not stand
    with torch.no_grad():
        torch.testing.assert_close(loaded(**rows).logits, model.eval()(**rows).logits)


@pytest.mark.parametrize(
    ("option", "message"),
    [("fp16", "fp16=True"), ("load_best_model_at_end", "load_best_model_at_end=True.* at 22")],
)
def test_runs_whose_ranks_could_be_wrong_are_refused(tmp_path, option, message):
    """Before a step is taken."""
    trainer = trainer_of(tiny_adalora(), tmp_path, [AdaLoraReallocation()], n_steps=N_STEPS)
    setattr(trainer.args, option, True)  # the Trainer itself would refuse fp16 on a CPU

    with pytest.raises(InvalidOption, match=message):
        trainer.train()


def test_a_total_step_that_is_not_the_runs_is_refused(tmp_path):
    """Not ignored: ranks would never reach the target, or reach it and go on falling."""
    trainer = trainer_of(tiny_adalora(50), tmp_path, [AdaLoraReallocation()], n_steps=N_STEPS)

    with pytest.raises(
        InvalidOption, match=r"total_step=50, this run takes 24.*total_steps=24"
    ):
        trainer.train()


def test_a_config_that_peft_accepts_and_then_crashes_on_is_refused(tmp_path):
    """init_r at or below target_r: PEFT's own allocation raises at its first cut."""
    config = AdaLoraConfig(target_modules=TARGETS, total_step=N_STEPS, init_r=2, target_r=2)
    model = get_peft_model(tiny("bert_classifier")[0].train(), config)
    trainer = trainer_of(model, tmp_path, [AdaLoraReallocation()], n_steps=N_STEPS)

    with pytest.raises(InvalidOption, match="init_r=2; it must be a whole number, 3 or more"):
        trainer.train()
    model(**collate(make_examples(4))).loss.backward()
    with pytest.raises(RuntimeError):
        model.base_model.update_and_allocate(1)


def test_a_matrix_without_gradient_is_named(tmp_path):
    """PEFT would raise a TypeError about None."""
    model = tiny_adalora()
    for name, parameter in model.named_parameters():
        if "layer.0" in name and "lora_A" in name:
            parameter.requires_grad_(False)
    trainer = trainer_of(model, tmp_path, [AdaLoraReallocation()], n_steps=N_STEPS)

    with pytest.raises(MissingGradient, match=r"layer\.0.*lora_A.*optimizer step 1"):
        trainer.train()


def test_a_model_without_adalora_is_refused(tmp_path):
    """By name, with the way to have one."""
    with pytest.raises(InvalidOption, match="carries no AdaLoRA"):
        adalora_ranks(tiny("bert_classifier")[0])


def test_without_the_callback_no_rank_falls(tmp_path):
    """The Trainer calls nothing of AdaLoRA by itself: what the callback is for."""
    model = tiny_adalora()
    trainer_of(model, tmp_path, [], n_steps=N_STEPS).train()

    assert sum(adalora_ranks(model).values()) == 3 * 4
