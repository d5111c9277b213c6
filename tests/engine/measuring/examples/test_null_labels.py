"""Null labels: those of other examples, as many, at the same places, and the same each time."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fimlora.measuring.examples.losses import IGNORED, Loss, LossKind
from fimlora.measuring.examples.null_labels import NullLabels


def draws(batches, kind=LossKind.SINGLE_LABEL, seed=0):
    """What each batch's labels become."""
    null, found, first = NullLabels(Loss(kind), seed), [], 0
    for labels in batches:
        found.append(null.draw(labels, first + torch.arange(len(labels))))
        first += len(labels)
    return found, null.counts


def tokens(counts, n_tokens, start):
    """Labels of a language model: the last so many of each row, all different."""
    labels = torch.full((len(counts), n_tokens), IGNORED)
    for row, count in enumerate(counts):
        labels[row, n_tokens - count :] = torch.arange(start, start + count)
        start += count
    return labels


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_every_example_gets_the_label_of_another_one(sizes, seed):
    """Of its batch or one before; only a first batch of one example has none to choose from."""
    names = torch.arange(sum(sizes)).split(sizes)

    found, (n_targets, n_changed) = draws(names, seed=seed)

    for own, new in zip(names, found, strict=True):
        is_alone = int(own[-1]) == 0
        assert (own == new).sum() == is_alone
        assert len(new.unique()) == len(new)
        assert new.max() <= own.max()
    assert (n_targets, n_changed) == (sum(sizes), sum(sizes) - (sizes[0] == 1))


def test_a_first_batch_has_its_labels_permuted():
    """So that each is as frequent as it was, also among vectors of them."""
    labels = torch.rand(40, 3)

    ([found], counts) = draws([labels], LossKind.MULTI_LABEL)

    assert torch.equal(found.sort(dim=0).values, labels.sort(dim=0).values)
    assert all(any(torch.equal(row, other) for other in labels) for row in found)
    assert counts == (40, 40)


def test_two_classes_say_nothing_of_each_other():
    """Over many batches of two, a null label is right as often as wrong."""
    labels = torch.randint(0, 2, (2000,), generator=torch.Generator().manual_seed(0))

    found, (_, n_changed) = draws(labels.split(2))

    agreement = (torch.cat(found) == labels).double().mean().item()
    assert abs(agreement - 0.5) <= 0.05  # four times the deviation of 2000 fair coins
    assert n_changed == (torch.cat(found) != labels).sum()


def test_batches_of_one_class_each_borrow_from_those_before():
    """A loader that sorts by class has labels to exchange all the same."""
    batches = [torch.full((8,), label) for label in range(6)]

    found, (n_targets, n_changed) = draws(batches)

    assert torch.equal(found[0], batches[0])  # there is no other label yet
    assert all((new != own).any() for own, new in zip(batches[1:], found[1:], strict=True))
    assert n_targets == 48
    assert 20 <= n_changed <= 40


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(0, 99))
def test_tokens_come_from_other_examples_and_keep_their_places(counts, seed):
    """As many labels per example; no token of its own unless it has more than half of all."""
    batches = [tokens(counts, 8, 100), tokens(counts[::-1], 8, 500)]

    found, _ = draws(batches, LossKind.CAUSAL_LM, seed)

    for own, new in zip(batches, found, strict=True):
        assert torch.equal(own == IGNORED, new == IGNORED)
        for mine, theirs in zip(own, new, strict=True):
            kept = set(mine[1:].tolist()) & set(theirs[1:].tolist()) - {IGNORED}
            is_most = 2 * (mine[1:] != IGNORED).sum() > (own[:, 1:] != IGNORED).sum()
            assert is_most or not kept


def test_a_label_that_no_position_predicts_is_no_target():
    """The first token of a causal language model; it stays as it is."""
    labels = torch.arange(12).view(3, 4)

    ([found], counts) = draws([labels], LossKind.CAUSAL_LM)

    assert torch.equal(found[:, 0], labels[:, 0])
    assert counts == (9, 9)


def test_seed_and_place_in_the_run_decide():
    """The same again draws the same; another seed, or more before it, draws otherwise."""
    labels = torch.arange(30)

    again = [draws([labels], seed=seed)[0][0] for seed in (4, 4, 5)]
    later = draws([torch.arange(50, 53), labels], seed=4)[0][1]

    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    assert not torch.equal(again[0], later)


def test_labels_of_another_width_are_not_mixed():
    """Rows of a loss of one's own may be of any width from batch to batch."""
    batches = [torch.zeros(3, 2), torch.ones(3, 4)]

    found, _ = draws(batches, LossKind.CUSTOM)

    assert [new.shape for new in found] == [(3, 2), (3, 4)]


def test_a_loss_of_ones_own_without_labels_has_no_null():
    """There is nothing to exchange."""
    loss = Loss(LossKind.CUSTOM, lambda outputs, batch: outputs)

    assert NullLabels.of({"input_ids": torch.zeros(2, 3)}, loss, 0) is None
    assert NullLabels.of({"labels": torch.tensor(3)}, loss, 0) is None
    assert NullLabels.of({"labels": torch.zeros(3)}, loss, 0) is not None
