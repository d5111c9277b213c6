"""The callback in the real Trainer: before the first step, at every checkpoint, and at the end."""

import json
import warnings

import pytest
import torch
from peft import PeftModel

from fimlora import VerifyPlan, verify_adapter
from fimlora.errors import InvalidAdapter, InvalidOption, NotAsPlanned
from support.verifying import base, planned_in, run


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """PEFT asks the hub about the base model when it saves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def case(tmp_path):
    return planned_in(tmp_path / "plan")


def b_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_B." in n}


@pytest.mark.parametrize("source", ["folder", "file", "plan", "pattern"])
def test_a_training_that_is_as_planned(case, tmp_path, source):
    """Seen three times: before, in the checkpoint, after; whatever form the plan has."""
    data = {
        "rank_map": json.loads((case.folder / "rank_map.json").read_text()),
        "adapter_config": json.loads((case.folder / "adapter_config.json").read_text()),
    }
    (tmp_path / "pattern.json").write_text(json.dumps(data))
    plans = {
        "folder": case.folder,
        "file": str(case.folder / "rank_map.json"),
        "plan": case.plan,
        "pattern": tmp_path / "pattern.json",
    }
    callback = VerifyPlan(plans[source])

    run(case.model(), tmp_path / "run", callback)

    assert [report.as_planned for report in callback.reports] == [True] * 3
    assert "checkpoint-2" in callback.reports[1].subject
    assert verify_adapter(tmp_path / "run", plans[source]).as_planned
    assert not any("not trained yet" in note for note in callback.reports[2].notes)


def test_another_training_stops_before_its_first_step(case, tmp_path):
    """With a sentence; nothing has moved and nothing was written."""
    model = case.model(rank_pattern={}, alpha_pattern={})
    before = b_of(model)

    with pytest.raises(
        NotAsPlanned, match=r"default rank 8, planned is 1.*rank_pattern"
    ) as caught:
        run(model, tmp_path / "run", VerifyPlan(case.folder))

    assert "about to train" in str(caught.value)
    for name, value in b_of(model).items():
        torch.testing.assert_close(value, before[name])
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_warning_lets_it_go_on(case, tmp_path):
    """Every look says it, and the reports hold all."""
    model = case.model(alpha_pattern={})
    callback = VerifyPlan(case.folder, on_mismatch="warn")

    with pytest.warns(UserWarning, match="alpha_pattern has none"):
        run(model, tmp_path / "run", callback)

    assert [report.as_planned for report in callback.reports] == [False] * 3
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_what_changes_while_it_trains_is_seen_at_the_end(case, tmp_path):
    """A resize by another callback, after the first look."""
    from transformers import TrainerCallback

    from fimlora.adapter.live import resize_adapter
    from support.plans import plan_of

    class Resizes(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resize_adapter(kwargs["model"], plan_of(case.plan.modules, [4]))

    with pytest.raises(NotAsPlanned, match=r"has rank 4|default rank 4"):
        run(case.model(), tmp_path / "run", Resizes(), VerifyPlan(case.folder))


def test_padding_that_trains_is_seen(tmp_path):
    """Layout C from its config alone is refused at once; from its folder it stays zero."""
    case = planned_in(tmp_path / "plan", layout="C", weights=True)
    loaded = PeftModel.from_pretrained(base(), case.folder, is_trainable=True)
    callback = VerifyPlan(case.folder)

    run(loaded, tmp_path / "run", callback)

    assert "padded to rank 8; the padding is zero" in callback.reports[-1].notes
    with pytest.raises(NotAsPlanned, match="what pads it is not zero"):
        run(case.model(), tmp_path / "other", VerifyPlan(case.folder))


def test_an_adapter_of_another_name(case, tmp_path):
    """PEFT keeps it in a folder of its own inside the checkpoint."""
    from peft import get_peft_model

    model = get_peft_model(base(), case.config(), adapter_name="mine")
    callback = VerifyPlan(case.folder, adapter_name="mine")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, of the second adapter
        run(model, tmp_path / "run", callback)

    assert [report.as_planned for report in callback.reports] == [True] * 3
    assert verify_adapter(tmp_path / "run", case.folder).as_planned
    with pytest.raises(NotAsPlanned, match="no LoRA adapter 'default'"):
        run(model, tmp_path / "other", VerifyPlan(case.folder))


def test_what_cannot_be_is_refused_when_it_is_made(case, tmp_path):
    """Before any model is loaded."""
    with pytest.raises(InvalidOption, match="'raise', 'warn'"):
        VerifyPlan(case.folder, on_mismatch="ignore")
    with pytest.raises(InvalidAdapter, match="cannot read a plan"):
        VerifyPlan(tmp_path / "nowhere")
    with pytest.raises(InvalidAdapter, match=r"give the rank_map.json"):
        VerifyPlan(case.folder / "adapter_config.json")
