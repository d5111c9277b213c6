"""An adapter resized under its optimizer: what it does, and what the optimizer knows."""

import copy
from dataclasses import replace

import pytest
import torch

from fimlora import find_targets
from fimlora.adapter.resizing import resize_factors
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.reallocation.optimizer_state import carried_state
from fimlora.reallocation.resize import resize_with_state
from support.models import make_batch
from support.plans import plan_of
from support.trained import layers_of, trained_adapter

NAME = "bert_classifier"


def trained(optimizer_of, *, n_steps=4, dtype=None):
    """A model after some steps, its optimizer, and batches."""
    model = trained_adapter(NAME, (3, 3, 3), dtype=dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(parameters)
    batches = [make_batch(NAME, (30, 9, 7, 3), seed=i) for i in range(n_steps + 2)]
    for batch in batches[:n_steps]:
        step(model, optimizer, batch)
    return model, optimizer, batches[n_steps:]


def step(model, optimizer, batch):
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def plan_for(model, ranks):
    return plan_of(find_targets(model), ranks, scale=1.5)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_growing_adapter_does_what_it_did(dtype):
    """Logits are the same to rounding; in float32 a step later they have moved."""
    model, optimizer, (batch, _) = trained(adamw, dtype=dtype)
    with torch.no_grad():
        before = model(**batch).logits

    moved = resize_with_state(model, optimizer, plan_for(model, [3, 8, 5]))

    with torch.no_grad():
        after = model(**batch).logits
    assert not moved.errors
    assert set(moved.ranks.values()) == {(3, 8), (3, 5)}
    tolerance = 1e-5 if dtype is None else 0.0
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
    step(model, optimizer, batch)
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize(
    "optimizer_of",
    [
        adamw,
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
    ],
)
def test_what_did_not_change_trains_on_as_if_nothing_had_happened(optimizer_of):
    """The next step of kept rows and columns is, to rounding, that of a copy that was not resized.

    New columns of B are zero, so they add nothing to any gradient in their first step.
    """
    model, optimizer, (batch, _) = trained(optimizer_of)
    twin = copy.deepcopy((model, optimizer))

    resize_with_state(model, optimizer, plan_for(model, [3, 6, 4]))
    step(model, optimizer, batch)
    step(*twin, batch)

    for name, layer in layers_of(model).items():
        was = layers_of(twin[0])[name]
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(A[:3], was.lora_A["default"].weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(B[:, :3], was.lora_B["default"].weight, rtol=1e-5, atol=1e-6)


def test_the_optimizer_trains_the_new_parameters_in_their_groups():
    """No old one is left, groups keep their settings and order, and so does the scheduler."""
    model, _, (batch, _) = trained(adamw, n_steps=1)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if "lora_A" in n], "lr": 1e-3},
        {"params": [p for n, p in named if "lora_A" not in n], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(model, optimizer, batch)
    scheduler.step()
    names = [[n for n, p in named if any(p is q for q in g["params"])] for g in groups]

    resize_with_state(model, optimizer, plan_for(model, [1, 5, 2]))

    new = dict(model.named_parameters())
    for group, of_group in zip(optimizer.param_groups, names, strict=True):
        assert [id(p) for p in group["params"]] == [id(new[n]) for n in of_group]
    assert {id(p) for p in optimizer.state} <= {id(p) for p in new.values()}
    assert [g["lr"] for g in optimizer.param_groups] == [5e-4, 5e-3]
    step(model, optimizer, batch)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [2.5e-4, 2.5e-3]


def test_averages_of_gradients_go_along_with_rows_that_were_mixed():
    """As if training had been in the new rows all along: Adam's average of gradients of A' and B'.

    Against an average kept by hand of the gradients that the mixed matrices have.
    """
    draws = torch.Generator().manual_seed(0)
    A, B = (torch.randn(s, generator=draws).double() for s in ((4, 9), (6, 4)))
    drawn = torch.randn(2, 9, generator=draws).double()
    resized = resize_factors(A, B, drawn)
    pair = [torch.nn.Parameter(A.clone()), torch.nn.Parameter(B.clone())]
    optimizer = torch.optim.Adam(pair, lr=0.0)  # the matrices stay, gradients come and go
    by_hand = [torch.zeros_like(resized.A), torch.zeros_like(resized.B)]
    for _ in range(5):
        G = torch.randn(6, 9, generator=draws).double()
        pair[0].grad, pair[1].grad = B.T @ G, G @ A.T
        optimizer.step()
        for average, grad in zip(by_hand, (resized.B.T @ G, G @ resized.A.T), strict=True):
            average.mul_(0.9).add_(grad, alpha=0.1)

    for is_A, parameter, wanted in zip((True, False), pair, by_hand, strict=True):
        state = carried_state(optimizer, parameter, resized, is_A=is_A)
        torch.testing.assert_close(state["exp_avg"], wanted)
        assert state["exp_avg_sq"].shape == wanted.shape
        assert (state["exp_avg_sq"] >= 0).all()
        assert state["step"] == 5


def test_a_shrinking_adapter_says_what_it_cut():
    """The error is that of the update, and the model trains on."""
    model, optimizer, (batch, other) = trained(adamw)
    before = {n: m.get_delta_weight("default") for n, m in layers_of(model).items()}

    moved = resize_with_state(model, optimizer, plan_for(model, [1, 2, 3]))

    shrunk = {n for n, (was, now) in moved.ranks.items() if now < was}
    assert moved.errors.keys() == shrunk
    for name, error in moved.errors.items():
        now = layers_of(model)[name].get_delta_weight("default")
        found = (now - before[name]).norm() / before[name].norm()
        assert found.item() == pytest.approx(error, rel=1e-4)
        assert 0 < error < 1
    step(model, optimizer, batch)
    step(model, optimizer, other)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_what_cannot_be_carried_over_changes_nothing():
    """An optimizer whose state is factored, and one that trains copies."""
    model, optimizer, _ = trained(lambda p: torch.optim.Adafactor(p, lr=1e-2))
    before = {n: p.clone() for n, p in model.named_parameters()}
    plan = plan_for(model, [1, 5, 2])

    with pytest.raises(UnsupportedModule, match=r"Adafactor keeps '(row|col)_var'"):
        resize_with_state(model, optimizer, plan)
    copies = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    with pytest.raises(UnsupportedModule, match="AdamW does not train"):
        resize_with_state(model, adamw(copies), plan)

    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_plan_that_changes_scales_is_refused():
    """What the adapter does would change with them."""
    model, optimizer, _ = trained(adamw, n_steps=1)
    plan = replace(plan_for(model, [1, 5, 2]), scaling="alpha", lora_alpha=8)

    with pytest.raises(InvalidOption, match=r"scaling='alpha'.* allocate without alpha"):
        resize_with_state(model, optimizer, plan)


def test_new_rows_are_drawn_from_the_seed_alone():
    """The global random state is not touched."""
    model, optimizer, _ = trained(adamw, n_steps=1)
    state = torch.get_rng_state()

    resize_with_state(model, optimizer, plan_for(model, [5, 5, 5]), seed=7)

    assert torch.equal(torch.get_rng_state(), state)
    for module in find_targets(model):
        A = layers_of(model)[module.name].lora_A["default"].weight
        assert torch.equal(A[3:], draw_lora_a(module, rank=5, seed=7)[3:])
