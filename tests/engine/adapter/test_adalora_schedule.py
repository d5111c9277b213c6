"""Schedules of AdaLoRA: what is chosen always runs to its end, what would not is refused by name."""

import itertools

import pytest
from peft import AdaLoraConfig, get_peft_model

from fimlora.adapter.adalora import adalora_config
from fimlora.adapter.adalora_schedule import adalora_schedule
from fimlora.errors import InvalidOption
from support.models import tiny
from support.trainer_runs import collate, make_examples


@pytest.mark.parametrize("target_r", [1, 2, 8])
def test_what_is_chosen_is_legal_for_every_number_of_steps(target_r):
    """PEFT takes it, the window is cut by whole intervals, and ranks are there to be taken."""
    for total in range(2, 400):
        schedule = adalora_schedule(total, target_r=target_r)
        AdaLoraConfig(target_modules=["query"], **schedule.settings)

        assert schedule.window % schedule.deltaT == 0
        assert schedule.window >= 1
        assert schedule.last_cut >= 2
        assert schedule.init_r > target_r


def test_what_is_chosen_for_a_long_training():
    """A fifth before, a tenth after, every ten steps: what the docstring says."""
    schedule = adalora_schedule(1003, target_r=8, accumulation_steps=4)

    assert (schedule.tinit, schedule.tfinal, schedule.deltaT) == (200, 103, 10)
    assert schedule.init_r == 12
    assert schedule.orth_reg_weight == 0.125


def test_whatever_is_allowed_runs_to_its_end_and_nothing_else_is_allowed():
    """Every schedule of a few steps, run by PEFT itself: allowed iff it ends at the target."""
    model = tiny("bert_classifier")[0].train()
    batch = collate(make_examples(4))
    options = itertools.product((1, 2, 3, 4), (1, 2), (1, 2, 3), range(4), range(4))
    n_allowed = 0
    for total, target_r, init_r, tinit, tfinal in options:
        given = {"init_r": init_r, "target_r": target_r, "tinit": tinit, "tfinal": tfinal}
        try:
            config = adalora_config(["query"], total_steps=total, task_type="SEQ_CLS", **given)
        except InvalidOption:
            assert ranks_at_the_end(model, batch, total, given) != 2 * target_r, (total, given)
        else:
            n_allowed += 1
            own = {**given, "deltaT": config.deltaT}
            assert ranks_at_the_end(model, batch, total, own) == 2 * target_r, (total, given)
    assert n_allowed > 20


def ranks_at_the_end(model, batch, total, settings):
    """Run PEFT's allocation step by step, as its documentation does; ``None`` if it crashes."""
    adapted = None
    try:
        config = AdaLoraConfig(target_modules=["query"], total_step=total, **settings)
        adapted = get_peft_model(model, config)
        allocator = adapted.base_model.rankallocator
        n_begun = allocator.init_bgt
        for name, p in adapted.named_parameters():
            if "lora_E" in name:
                p.data.normal_()
        for step in range(1, total + 1):
            adapted.zero_grad()
            adapted(**batch).loss.backward()
            adapted.base_model.update_and_allocate(step)
        ranks = [int((p != 0).sum()) for n, p in adapted.named_parameters() if "lora_E" in n]
        # At the rank it began with, nothing was allocated: not a schedule.
        return sum(ranks) if sum(ranks) < n_begun else None
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError):
        return None
    finally:
        if adapted is not None:
            adapted.unload()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 1}, "total_steps=1; it must be a whole number, 2 or more"),
        ({"total_steps": True}, "total_steps=True"),
        ({"target_r": 0}, "target_r=0; it must be a whole number, 1 or more"),
        ({"init_r": 4}, r"init_r=4; it must be a whole number, 5 or more \(above target_r\)"),
        ({"tinit": 100}, "tinit=100; it must be a whole number, 0 to 99"),
        ({"tinit": 60, "tfinal": 40}, "tfinal=40; it must be a whole number, 0 to 39"),
        ({"tinit": 0, "tfinal": 99}, "tfinal=99; it must be a whole number, 0 to 98"),
        ({"tinit": 20, "tfinal": 10, "delta_t": 71}, "deltaT=71; .* 1 to 70"),
        (
            {"tinit": 20, "tfinal": 10, "delta_t": 9},
            "near it do: 7, 10, 14|near it do: 5, 7, 10",
        ),
        ({"accumulation_steps": 0}, "accumulation_steps=0"),
        ({"orth_reg_weight": -1}, r"orth_reg_weight=-1\.0"),
        ({"beta1": 1.0}, r"beta1=1\.0"),
        ({"scale": 0}, "scale=0"),
        ({"r": 8}, "r is not for AdaLoRA"),
        ({"rank_pattern": {}}, "rank_pattern is not for AdaLoRA"),
    ],
)
def test_what_would_crash_or_be_ignored_is_refused_with_what_is_allowed(options, message):
    """Before a model is made."""
    with pytest.raises(InvalidOption, match=message):
        adalora_config(["query"], **({"total_steps": 100, "target_r": 4} | options))


def test_the_scale_at_the_beginning_is_as_asked():
    """Alpha is what PEFT divides by the first rank."""
    config = adalora_config(["query"], total_steps=100, target_r=3, scale=0.5)

    assert config.lora_alpha / config.init_r == 0.5
