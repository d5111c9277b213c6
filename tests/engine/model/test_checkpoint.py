"""A tensor is the same whether it is read at once or in parts, by one thread or several."""

import pytest
import torch
from safetensors.torch import save_file

from fimlora.errors import InvalidCheckpoint
from fimlora.model.checkpoint import Checkpoint

FILE = "model.safetensors"


@pytest.fixture(params=[1, 3])
def stored(request, tmp_path):
    """Tensors of none, one and many parts, their folder, and it opened."""
    torch.manual_seed(0)
    tensors = {
        "empty": torch.empty(0, 4),
        "short": torch.randn(3),
        "whole": torch.randn(48),
        "long": torch.randn(131, 7).bfloat16(),
    }
    save_file(tensors, tmp_path / FILE)
    return tensors, tmp_path, Checkpoint(tmp_path, n_readers=request.param, part_bytes=64)


def test_what_is_read_is_what_was_saved(stored):
    """Values, dtypes and shapes; a tensor counts as read once however many parts it has."""
    tensors, _, opened = stored

    for name, tensor in tensors.items():
        assert torch.equal(opened.read(name), tensor)
        assert opened.read(name).dtype == tensor.dtype

    assert opened.reads == dict.fromkeys(tensors, 2)


def test_a_file_that_ends_inside_a_tensor_is_refused_by_name(stored):
    """The file lost its last bytes after it was opened."""
    _, folder, opened = stored
    last = max(opened.tensors, key=lambda name: opened.tensors[name].offset)
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:-3])

    with pytest.raises(InvalidCheckpoint, match=f"{FILE} ends inside tensor '{last}'"):
        opened.read(last)
