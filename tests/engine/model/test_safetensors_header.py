"""Headers of real files are read as they are, and all others are refused by what is wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fimlora.model.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, read_header


def test_a_header_tells_where_each_tensor_lies(tmp_path):
    """Names, types and shapes, bytes that are the tensors', and the metadata."""
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "m", metadata={"format": "pt"})

    with (tmp_path / "m").open("rb") as file:
        header = read_header(file)
        place = file.tell()

    content = (tmp_path / "m").read_bytes()
    found = {n: (e.dtype, e.itemsize, e.shape) for n, e in header.tensors.items()}
    assert found == {
        "a": ("F32", 4, (2, 3)),
        "b": ("BF16", 2, (5,)),
        "none": ("U8", 1, (0, 4)),
    }
    assert header.metadata == {"format": "pt"}
    assert header.content == content[:place]
    for name, tensor in tensors.items():
        entry = header.tensors[name]
        stored = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        assert torch.equal(stored[entry.start : entry.stop], tensor.flatten().view(torch.uint8))


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def whole(header, n_bytes=8):
    """A file with this header and so many bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(n_bytes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no header"),
        (bytes(8), "it has no header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "its header of 104857601 bytes is over"),
        ((9).to_bytes(8, "little") + b"{}", "its header is longer than the file"),
        (whole(b"{", 0), "Expecting property name"),
        (whole(b"[" * 100_000, 0), "recursion"),
        (whole(b"[" + b"{}," * (MAX_TENSORS + 1), 0), "more than 262144 tensors"),
        (whole(b"[" + b"[]," * 2 * MAX_TENSORS, 0), "more than 262144 tensors"),
        (whole([1, 2], 0), "its header is none"),
        (whole({"a": 1}, 0), "its header is none"),
        (whole({"a": {"dtype": "F32", "shape": [2]}}), "data_offsets"),
        (whole(entry(shape=(-2,))), r"shape \(-2,\)"),
        (whole(entry(shape=(2**40,))), r"shape \(1099511627776,\)"),
        (whole(entry(shape=None)), "its header is none"),
        (whole(entry(shape=(float("inf"),))), "its header is none"),
        (whole(entry(offsets=(8, 0))), "it states the bytes 8 to 0"),
        (whole(entry(), 7), r"its tensors end at byte \d+ of \d+"),
        (whole(entry(), 9), r"its tensors end at byte \d+ of \d+"),
    ],
    ids=[
        *(
            "empty",
            "no_length",
            "too_long",
            "longer_than_file",
            "no_json",
            "deep",
            "many",
            "many_lists",
            "list",
        ),
        *("no_object", "no_bytes", "negative_side", "long_side", "no_shape", "infinite_side"),
        *("backwards", "cut", "longer"),
    ],
)
def test_what_is_no_whole_file_is_refused_by_what_is_wrong(content, message, tmp_path):
    """Whatever is in it, as it may come from anywhere."""
    (tmp_path / "m").write_bytes(content)

    with (
        (tmp_path / "m").open("rb") as file,
        pytest.raises(ValueError, match=f"(?i){message}"),
    ):
        read_header(file)


def test_an_unknown_type_is_read_without_its_width(tmp_path):
    """Its shape is all that a reader of headers may want."""
    (tmp_path / "m").write_bytes(whole(entry("F4")))

    with (tmp_path / "m").open("rb") as file:
        found = read_header(file).tensors["a"]

    assert (found.dtype, found.itemsize, found.shape) == ("F4", None, (2,))
