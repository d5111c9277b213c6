"""Which dtype a model is measured in."""

import pytest
import transformers

from fimlora_jobs.dtypes import BYTES, choose_dtype


@pytest.mark.parametrize(
    ("wanted", "own", "device", "dtype"),
    [
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "float16", "cuda", "float16"),
        ("auto", None, "cuda", "bfloat16"),
        ("auto", "float64", "cuda", "float64"),
        ("float32", "float16", "cuda", "float32"),
    ],
)
def test_dtype_follows_request_device_and_model(wanted, own, device, dtype):
    """A request decides; else a CPU runs float32, a GPU what the model was saved in."""
    config = transformers.BertConfig(dtype=own)

    assert choose_dtype(wanted, config.dtype, device=device) == dtype  # as torch has it
    assert choose_dtype(wanted, own, device=device) == dtype  # as config.json has it
    assert dtype in BYTES


@pytest.mark.parametrize("own", [None, {}, 16, "int8", "float8_e4m3fn", ["float16"]])
def test_a_dtype_that_nobody_can_measure_in_is_not_followed(own):
    """config.json may state anything."""
    assert choose_dtype("auto", own, device="cuda") == "bfloat16"
