"""A mixture whose experts are packed as MXFP4, as gpt-oss is published, is read as what it is."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from fimlora import measure
from fimlora.errors import InvalidCheckpoint
from fimlora.measuring.settings import Settings
from fimlora.measuring.streamed.run import measure_streamed
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import load
from fimlora.model.quantised_files import logical_shapes
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import count_base_parameters
from support.models import make_batch
from support.packing import fp4_blocks

CONFIG = GptOssConfig(
    vocab_size=61, hidden_size=64, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=3,
    num_experts_per_tok=2, pad_token_id=0, initializer_range=0.2,
)  # fmt: skip
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
# Of transformers, about kernels for GPUs.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny gpt-oss, packed under the names of the published ones."""
    folder = tmp_path_factory.mktemp("gpt_oss")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GptOssForCausalLM(CONFIG).bfloat16().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith(EXPERTS)]:
        blocks, scales = fp4_blocks(tensors.pop(name))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_weights_are_those_that_transformers_unpacks(folder):
    """All of them to the last bit, under its names."""
    wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()

    checkpoint = Checkpoint(folder)

    assert checkpoint.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert checkpoint.tensors[name].dtype == torch.bfloat16
        assert torch.equal(checkpoint.read(name), tensor), name
    packed = {name for name, tensor in checkpoint.tensors.items() if tensor.packed}
    assert len(packed) == 2 * len(EXPERTS)


def test_heads_of_the_files_tell_how_many_parameters_it_has(folder):
    """Two numbers to a byte, and scales are none."""
    tensors = load_file(folder / "model.safetensors")
    kinds = {torch.uint8: "U8", torch.bfloat16: "BF16"}
    stored = {name: (kinds[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    config = json.loads((folder / "config.json").read_text())

    shapes = logical_shapes(config, stored, None)

    wanted = count_base_parameters(GptOssForCausalLM(CONFIG))
    assert sum(map(math.prod, shapes.values())) == wanted


def test_streamed_and_resident_measure_its_experts_alike(folder):
    """Bit for bit, in the sizes of the unpacked model."""
    batches = [make_batch("llama_gqa_lm", [9, 5, 7])]
    options = {"target_modules": ["q_proj"], "target_parameters": [*EXPERTS]}

    skeleton = build_skeleton(folder, dtype=torch.float32)
    resident = measure(load(skeleton, folder, seed=0).model, batches, **options)
    streamed = measure_streamed(folder, batches, Settings(**options), dtype=torch.float32)

    assert resident.modules == streamed.modules
    assert len(resident.modules) == 2 * (1 + len(EXPERTS))
    assert streamed.base_parameters == count_base_parameters(GptOssForCausalLM(CONFIG))
    for module in resident.modules:
        energies = resident.row_energies[module.name]
        assert (energies == streamed.row_energies[module.name]).all()
        assert energies.sum() > 0


@pytest.mark.parametrize(
    ("ending", "change", "words"),
    [
        ("_scales", lambda t: t[:, :-1].clone(), "do not fit together"),
        ("_scales", lambda t: t.int(), "do not fit together"),
        ("_scales", lambda _: None, "do not fit together"),
        ("_blocks", lambda t: t.flatten(2), "do not fit together"),
        ("_scales", lambda t: t.fill_(255), "a scale is no number"),
    ],
    ids=["sides", "dtype", "none", "axes", "not a number"],
)
def test_damaged_parts_are_refused_by_name(folder, tmp_path, ending, change, words):
    """By the headers, or when a weight is read."""
    tensors = load_file(folder / "model.safetensors")
    key = next(name for name in tensors if name.endswith(ending))
    changed = change(tensors.pop(key))
    save_file(
        tensors | ({} if changed is None else {key: changed}), tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())

    with pytest.raises(InvalidCheckpoint, match=words) as caught:
        Checkpoint(tmp_path).read(key.removesuffix(ending))

    assert key.removesuffix(ending) in str(caught.value)
