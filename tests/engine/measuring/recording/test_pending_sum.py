"""A pass that fails half-way leaves no trace in any sum."""

import torch

from fimlora.measuring.recording.pending_sum import PendingSum


def test_only_finished_passes_count():
    """What was staged before a failure is gone; what was committed stays."""
    total = PendingSum()
    total.stage(torch.tensor([1.0, 2.0]))
    total.stage(torch.tensor([1.0, 1.0]))
    total.commit()
    total.stage(torch.tensor([100.0, 100.0]))
    total.discard()
    total.stage(torch.tensor([0.5, 0.5]))
    total.commit()

    assert total.total.tolist() == [2.5, 3.5]


def test_products_add_up_like_any_part():
    """Two calls of a module in one pass, and a pass after that."""
    left, right = torch.randn(3, 4), torch.randn(4, 2)
    total = PendingSum()

    for _ in range(2):
        total.stage_product(left, right)
        total.stage_product(left, right)
        total.commit()

    assert torch.allclose(total.total, 4 * left @ right)
