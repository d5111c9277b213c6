"""Where weights begin in memory: a matrix kernel may round otherwise elsewhere."""

from torch import nn

# As torch's own allocator has it.
ALIGNMENT = 64


def align(model: nn.Module) -> nn.Module:
    """Move weights that are not aligned; ``from_pretrained`` may leave them as the file has them.

    Args:
        model: A model on any device; it is changed in place.

    Returns:
        The model, with the same values.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model
