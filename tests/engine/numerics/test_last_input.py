"""What is made of a tensor is made once while it comes again, and anew when it is another one."""

import torch

from fimlora.numerics.last_input import LastInput


def made_of(last, made, x):
    """Take note of what is made, and give its number."""

    def make():
        made.append(x.clone())
        return len(made)

    return last.get(x, make)


def test_it_is_made_once_while_the_same_tensor_comes():
    """A view of the same memory and shape is the same tensor."""
    last, made, x = LastInput(), [], torch.ones(2, 3)

    found = [made_of(last, made, view) for view in (x, x.detach(), x.view(2, 3))]

    assert found == [1, 1, 1]


def test_another_tensor_or_a_changed_one_is_not_the_last_one():
    """Other memory, another shape, or a change in place that torch counts."""
    last, made, x = LastInput(), [], torch.ones(2, 3)

    found = [made_of(last, made, x), made_of(last, made, x.clone()), made_of(last, made, x)]
    found += [made_of(last, made, x.view(3, 2)), made_of(last, made, x), made_of(last, made, x)]
    x.add_(1)
    found.append(made_of(last, made, x))

    assert found == [1, 2, 3, 4, 5, 5, 6]
    assert made[-1].eq(2).all()


def test_what_is_forgotten_is_made_anew():
    """Its memory may belong to another tensor by then."""
    last, made, x = LastInput(), [], torch.ones(2)
    made_of(last, made, x)

    last.forget()

    assert made_of(last, made, x) == 2


def test_a_tensor_whose_changes_nobody_counts_is_never_the_last_one():
    """Torch does not number the changes of what was made in inference mode."""
    last, made = LastInput(), []
    with torch.inference_mode():
        x = torch.ones(2)

    with torch.inference_mode():
        found = [made_of(last, made, x), made_of(last, made, x)]

    assert found == [1, 2]
