"""Evaluation and training mode of a model whose gradients are measured."""

from torch import nn

from fimlora.model.linear_kinds import is_quantised


def set_mode(model: nn.Module, *, train_mode: bool) -> None:
    """Set the mode of a model, and have its quantised maps compute as when they train.

    They have no dropout of their own. In evaluation mode some change to kernels without a
    backward pass, or without the values that training sees: bitsandbytes repacks a 4 bit weight
    on a CPU for good, on the first input that needs no gradient.

    Args:
        model: The model.
        train_mode: The mode of all its other modules.
    """
    model.train(train_mode)
    for module in model.modules():
        if is_quantised(module):
            module.training = True
