"""Watching modules: what is reported, when, and what is left behind."""

import pytest
import torch

from fimlora.model.hooks import watch_modules
from support.toys import make_toy, toy_batch


def nothing_kept(name, x):
    return ()


def forward_backward(watch, toy, batch):
    watch.begin_forward()
    loss = toy(**batch).square().sum()
    watch.backward(loss)
    return loss


def frozen_toy(between="plain"):
    return make_toy(between).requires_grad_(False)


def test_a_gradient_is_that_of_the_output():
    """On a fully frozen model, where nothing requires grad."""
    toy, batch, seen = frozen_toy(), toy_batch(), {}

    with watch_modules(
        {"last": toy.second}, nothing_kept, lambda name, calls: seen.update({name: calls})
    ) as watch:
        forward_backward(watch, toy, batch)

    ((kept, gradient),) = seen["last"]
    assert kept == ()
    torch.testing.assert_close(gradient, 2 * toy(**batch))


def test_outputs_are_not_changed():
    """The values, shape and type are those of the model alone."""
    toy, batch = frozen_toy(), toy_batch()

    with watch_modules({"first": toy.first}, nothing_kept, lambda *_: None) as watch:
        watch.begin_forward()
        outputs = toy(**batch)

    assert torch.equal(outputs, toy(**batch))


def test_what_is_kept_comes_back_with_its_gradient():
    """Calls of one module are handed over together, each with its own."""
    toy, batch, seen = frozen_toy("first_called_twice"), toy_batch(), []

    with watch_modules(
        {"first": toy.first}, lambda name, x: (x * 3,), lambda name, calls: seen.append(calls)
    ) as watch:
        forward_backward(watch, toy, batch)

    ((last, _), (earlier, _)) = seen[0]
    torch.testing.assert_close(earlier[0], 3 * batch["x"])
    torch.testing.assert_close(last[0], 3 * torch.relu(toy.first(batch["x"])))


def test_the_backward_pass_stops_at_the_lowest_target():
    """Below it there is no graph, so no time is spent there."""
    toy, batch = frozen_toy(), toy_batch()

    with watch_modules({"second": toy.second}, nothing_kept, lambda *_: None) as watch:
        watch.begin_forward()
        hidden = toy.first(batch["x"])
        assert not hidden.requires_grad
        assert toy.second(hidden).requires_grad


def test_hooks_are_gone_after_the_block():
    """Also when the model raised inside it."""
    toy, x = frozen_toy(), torch.zeros(1, 1, 99, dtype=torch.float64)

    with watch_modules({"a": toy.first, "b": toy.second}, nothing_kept, lambda *_: None):
        assert toy.first._forward_hooks
        assert toy.second._forward_hooks
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            toy(x)

    assert not toy.first._forward_hooks
    assert not toy.second._forward_hooks


def test_a_call_that_the_loss_ignores_is_counted():
    """It adds nothing to the gradient of the weight; the other call is handed over."""
    toy, batch, seen = frozen_toy(), toy_batch(), []

    with watch_modules(
        {"first": toy.first}, nothing_kept, lambda *call: seen.append(call)
    ) as watch:
        watch.begin_forward()
        toy.first(batch["x"])
        loss = toy(**batch).sum()
        watch.backward(loss)

    ((name, calls),) = seen
    assert (name, len(calls), watch.calls["first"]) == ("first", 1, 2)


def test_a_pass_under_no_grad_is_a_call_without_gradient():
    """A model that switches gradients off around a target hands nothing over."""
    toy, batch, seen = frozen_toy(), toy_batch(), []

    with watch_modules(
        {"first": toy.first}, nothing_kept, lambda *call: seen.append(call)
    ) as watch:
        watch.begin_forward()
        with torch.no_grad():
            hidden = toy.first(batch["x"])
        loss = toy.second(hidden).sum()
        watch.backward(loss)

    assert (seen, watch.calls["first"]) == ([], 1)


def test_an_exception_of_the_callback_comes_out_of_the_backward_pass():
    """With its own type."""

    class Stop(Exception):
        pass

    def stop(name, calls):
        raise Stop

    toy, batch = frozen_toy(), toy_batch()

    with watch_modules({"first": toy.first}, nothing_kept, stop) as watch:
        watch.begin_forward()
        loss = toy(**batch).sum()
        with pytest.raises(Stop):
            watch.backward(loss)


def test_an_input_given_by_name_is_seen():
    """Some models call their linear maps with a keyword."""
    toy, batch, seen = frozen_toy(), toy_batch(), []

    with watch_modules(
        {"first": toy.first}, lambda name, x: (x,), lambda name, calls: seen.extend(calls)
    ) as watch:
        watch.begin_forward()
        watch.backward(toy.first(input=batch["x"]).sum())

    assert torch.equal(seen[0][0][0], batch["x"])
