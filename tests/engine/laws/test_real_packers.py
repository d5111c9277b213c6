"""Checkpoints of the field's own packers are read as these packers unpack them."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaForCausalLM

from fimlora import measure
from fimlora.errors import UnsupportedModule
from fimlora.measuring.settings import Settings
from fimlora.measuring.streamed.run import measure_streamed
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import load
from fimlora.model.quantised_files import logical_shapes
from fimlora.model.safetensors_header import read_header
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import count_base_parameters
from support.models import make_batch
from support.quantised import CONFIG
from support.real_packers import REAL_PACKERS, pack_with

# Of packages, about kernels that this machine lacks and about what they will call otherwise.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=sorted(REAL_PACKERS))
def packed(request, tmp_path):
    """A folder, and the weights that its packer says it holds."""
    return tmp_path / "packed", pack_with(request.param, tmp_path / "packed")


def test_what_a_packer_wrote_is_read_as_it_unpacks_it(packed):
    """Every weight, and nothing but weights; resident, streamed and counted as what they are."""
    folder, numbers = packed
    checkpoint = Checkpoint(folder)
    assert checkpoint.is_packed
    assert checkpoint.tensors.keys() == numbers.keys()
    for name, wanted in numbers.items():
        found = checkpoint.read(name)
        assert found.shape == wanted.shape
        off = (found.float() - wanted.float()).abs().max() / wanted.float().abs().max()
        # Some packers multiply in half precision: one rounding of the product, and of a scale.
        assert off <= 2 * torch.finfo(wanted.dtype).eps, (name, found.dtype, wanted.dtype, off)

    # What the service counts of the heads of files alone.
    with (folder / "model.safetensors").open("rb") as file:
        stored = {n: (e.dtype, e.shape) for n, e in read_header(file).tensors.items()}
    config = json.loads((folder / "config.json").read_text())
    shapes = logical_shapes(config, stored, None)
    assert shapes == {name: tuple(wanted.shape) for name, wanted in numbers.items()}

    options = {"target_modules": "all-linear"}
    batches = [make_batch("llama_gqa_lm", [9, 5, 7])]
    skeleton = build_skeleton(folder, dtype=torch.float32)
    resident = measure(load(skeleton, folder, seed=0).model, batches, **options)
    streamed = measure_streamed(folder, batches, Settings(**options), dtype=torch.float32)

    assert resident.modules == streamed.modules
    assert streamed.base_parameters == count_base_parameters(LlamaForCausalLM(CONFIG))
    for module in resident.modules:
        energies = resident.row_energies[module.name]
        assert (energies == streamed.row_energies[module.name]).all()


@pytest.mark.parametrize("name", sorted(n for n in REAL_PACKERS if n.startswith("compressed")))
def test_compressed_tensors_live(name, tmp_path):
    """Refused while it is packed, as its first pass would change it; unpacked, it is measured."""
    pack_with(name, tmp_path / "packed")
    options, batches = {"target_modules": "all-linear"}, [make_batch("llama_gqa_lm", [9, 5, 7])]

    def loaded(**how):
        config = CompressedTensorsConfig(**how)
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "packed", dtype=torch.float32, quantization_config=config
        )

    if name != "compressed_int4_asymmetric":  # transformers 5.23 does not load that packed
        with pytest.raises(UnsupportedModule, match="dequantize=True"):
            measure(loaded(), batches, **options)
    resident = measure(loaded(dequantize=True), batches, **options)
    streamed = measure_streamed(
        tmp_path / "packed", batches, Settings(**options), dtype=torch.float32
    )

    assert resident.modules == streamed.modules
    assert resident.base_parameters == streamed.base_parameters
    for module in resident.modules:
        energies = resident.row_energies[module.name]
        assert energies == pytest.approx(streamed.row_energies[module.name], rel=0.05)
