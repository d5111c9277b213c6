"""llama.cpp's own converter makes GGUF of layout C with the planned scale, and not of B.

A GGUF adapter has one alpha; llama.cpp divides it by each tensor's own rank.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.consumer("llama-cpp")


def converted(folder, llama):
    """Alpha and the tensors of the GGUF that the converter writes."""
    from gguf import GGUFReader

    sources = Path(os.environ["FIMLORA_CONSUMER_SOURCES"])
    file = folder.with_suffix(".gguf")
    subprocess.run(
        [
            *(sys.executable, sources / "convert_lora_to_gguf.py", folder),
            *("--base", llama.model_folder, "--outfile", file, "--outtype", "f32"),
        ],
        check=True,
    )
    read = GGUFReader(file)
    tensors = {t.name: torch.tensor(t.data) for t in read.tensors}
    return read.fields["adapter.lora.alpha"].contents(), tensors


def scales(alpha, tensors):
    """Alpha over rank, as llama.cpp takes it, of every module."""
    return {alpha / t.shape[0] for name, t in tensors.items() if name.endswith("lora_a")}


def test_layout_c_has_the_planned_scale_everywhere(llama, tmp_path):
    """And every module is there with the numbers of the folder."""
    folder = llama.write_adapter(tmp_path / "adapter", layout="C")

    alpha, tensors = converted(folder, llama)

    assert len(tensors) == 2 * len(llama.plan.ranks)
    assert scales(alpha, tensors) == {llama.plan.scale}
    written = load_file(folder / "adapter_model.safetensors")
    layer = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    torch.testing.assert_close(tensors["blk.1.ffn_down.weight.lora_a"], written[layer])


def test_layout_b_has_not(llama, tmp_path):
    """Why the service tells to use C: the narrow modules would count too much."""
    folder = llama.write_adapter(tmp_path / "adapter", layout="B")

    assert len(scales(*converted(folder, llama))) > 1
