"""A model that was measured is exactly as it was, whatever happened in between."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from fimlora import measure, score
from fimlora.errors import NumericalFailure
from fimlora.model.preserved import preserved
from support.models import make_batch, tiny
from support.peft_models import uniform_peft

NAME = "bert_classifier"


class Interrupted(Exception):
    """What a caller raises to cancel."""


def interrupt(done, total):
    raise Interrupted


def poison(model):
    """Make the forward pass give NaN."""
    model.classifier.weight.data.fill_(float("nan"))


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a model that measuring could disturb."""
    return {
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        ],
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "weights": {n: t.clone() for n, t in model.state_dict().items()},
        "config": model.config.to_dict(),
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_unchanged(before, after):
    for key in ("hooks", "modes", "flags", "config", "attributes"):
        assert before[key] == after[key], key
    assert torch.equal(before["random"], after["random"])
    for was, now in zip(before["gradients"], after["gradients"], strict=True):
        assert (was is None and now is None) or has_same_bits(was, now)
    assert before["weights"].keys() == after["weights"].keys()
    for name, was in before["weights"].items():
        assert has_same_bits(was, after["weights"][name]), name


def has_same_bits(left, right):
    """Also where a value is NaN, which equals nothing."""
    left, right = (t.cpu().contiguous().flatten() for t in (left, right))
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@pytest.fixture
def model():
    """Half trained: mixed modes and flags, and gradients on some parameters."""
    model, _ = tiny(NAME)
    model.train()
    model.bert.encoder.layer[0].eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad = index % 3 != 0
        if index % 4 == 1:
            parameter.grad = torch.full_like(parameter, index)
    return model


@pytest.fixture
def batches():
    return [make_batch(NAME, [5, 3], seed=i) for i in range(2)]


@pytest.mark.parametrize("train_mode", [False, True])
def test_a_run_leaves_no_trace(model, batches, train_mode):
    """Hooks, modes, flags, gradients, config and random state are as before."""
    before = state_of(model)

    measure(model, batches, target_modules="all-linear", train_mode=train_mode)

    assert_unchanged(before, state_of(model))


def test_a_canceled_run_leaves_no_trace(model, batches):
    """What ``on_batch`` raises comes out unchanged, and so does the model."""
    before = state_of(model)

    with pytest.raises(Interrupted):
        measure(model, batches, target_modules="all-linear", on_batch=interrupt)

    assert_unchanged(before, state_of(model))


def test_a_failed_run_leaves_no_trace(model, batches):
    """Also when the failure comes from the model's own numbers."""
    poison(model)
    before = state_of(model)

    with pytest.raises(NumericalFailure):
        measure(model, batches, target_modules="all-linear")

    assert_unchanged(before, state_of(model))


def test_a_change_beside_a_value_that_is_none_is_seen():
    """What this file compares with lets nothing pass."""
    poisoned = torch.tensor([float("nan"), 1.0])

    assert has_same_bits(poisoned, poisoned.clone())
    assert not has_same_bits(poisoned, torch.tensor([float("nan"), 2.0]))
    assert not has_same_bits(poisoned, torch.tensor([0.0, 1.0]))


def test_a_batch_that_raises_inside_the_model_leaves_no_trace(model, batches):
    """An index outside the table of segments raises in the middle of the forward pass."""
    batches[1]["token_type_ids"] = torch.full_like(batches[1]["input_ids"], 10**6)
    before = state_of(model)

    with pytest.raises(IndexError):
        measure(model, batches, target_modules="all-linear")

    assert_unchanged(before, state_of(model))


def test_a_live_adapter_comes_back_trainable(batches):
    """On a PEFT model the adapter's flags and tensors are as before."""
    model, targets = tiny(NAME)
    peft_model = uniform_peft(model, targets)
    before = state_of(peft_model.get_base_model())

    measure(peft_model, batches)

    assert_unchanged(before, state_of(peft_model.get_base_model()))


def test_the_batches_are_not_changed(model, batches):
    """A caller's mapping keeps its keys and tensors."""
    before = [{k: v.clone() for k, v in batch.items()} for batch in batches]

    measure(model, batches, target_modules=["query"])

    for was, now in zip(before, batches, strict=True):
        assert was.keys() == now.keys()
        assert all(torch.equal(was[key], now[key]) for key in was)


def test_it_works_where_gradients_are_off(model, batches):
    """A caller under ``no_grad`` gets the same statistics."""
    wanted = score(measure(model, batches, target_modules=["query"])).by_module

    with torch.no_grad():
        found = score(measure(model, batches, target_modules=["query"])).by_module

    assert found == wanted


def test_a_shuffling_loader_gives_the_same_batches_every_time(model):
    """The random state is seeded inside, so the same call has the same result."""
    rows = make_batch(NAME, [5] * 8)
    examples = [{k: v[i] for k, v in rows.items()} for i in range(8)]

    def run():
        loader = DataLoader(examples, batch_size=2, sampler=RandomSampler(examples))
        return score(measure(model, loader, target_modules=["query"], n_batches=2)).by_module

    first = run()
    torch.manual_seed(99)

    assert run() == first


def test_the_random_states_of_python_and_numpy_are_put_back(model):
    """A loader may shuffle with them; on the engine itself, as type checkers draw, too."""
    python_state, numpy_state = random.getstate(), np.random.get_state()

    with preserved(model, train_mode=False, seed=0):
        random.random()
        np.random.rand()
        assert random.getstate() != python_state

    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2:] == numpy_state[2:]


def test_dropout_is_off_unless_asked_for(batches):
    """The result does not depend on the mode the model comes in."""
    model, targets = tiny(NAME)
    options = {"target_modules": targets}
    wanted = score(measure(model.eval(), batches, **options)).by_module

    assert score(measure(model.train(), batches, **options)).by_module == wanted
    assert score(measure(model, batches, **options, train_mode=True)).by_module != wanted
