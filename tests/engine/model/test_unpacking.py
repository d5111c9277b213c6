"""A quantised checkpoint is read as the model that its packed weights stand for."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, Phi3ForCausalLM, Qwen3MoeForCausalLM

from fimlora import measure, measure_folder
from fimlora.errors import InvalidCheckpoint
from fimlora.measuring.settings import Settings
from fimlora.measuring.streamed.run import measure_streamed
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import load
from fimlora.model.packed_parts import UnreadablePacking, unpacked_view
from fimlora.model.quantised_files import logical_shapes
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import count_base_parameters
from support.models import make_batch
from support.packing import PACKERS, gptq, grouped, pack_folder, pack_gpt2, words
from support.quantised import CONFIG, folder_of_a_model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return folder_of_a_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(params=sorted(PACKERS))
def name(request):
    return request.param


@pytest.fixture
def packed(name, plain, tmp_path):
    """A folder, and the weights it is to be read as."""
    return tmp_path / name, pack_folder(plain, tmp_path / name, name)


def test_weights_are_what_the_packed_tensors_stand_for(packed):
    """Under the names, shapes and values of an unquantised checkpoint, and no other tensor."""
    folder, numbers = packed

    checkpoint = Checkpoint(folder)

    assert checkpoint.is_packed
    assert checkpoint.tensors.keys() == numbers.keys()
    for key, wanted in numbers.items():
        found = checkpoint.read(key)
        assert checkpoint.tensors[key].shape == tuple(wanted.shape)
        assert found.dtype == checkpoint.tensors[key].dtype
        assert found.is_contiguous()
        torch.testing.assert_close(found.float(), wanted, rtol=1e-6, atol=1e-7)


def test_headers_tell_the_shapes(packed):
    """Of all methods; of 4 bit weights of bitsandbytes without their state, but for the order.

    And so how many parameters there are, which a budget may be a fraction of.
    """
    folder, numbers = packed
    config = json.loads((folder / "config.json").read_text())
    stored = {
        n: ({torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
             torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}[t.dtype],
            tuple(t.shape))
        for n, t in load_file(folder / "model.safetensors").items()
    }  # fmt: skip

    shapes = logical_shapes(config, stored, None)

    assert {n: sorted(s) for n, s in shapes.items()} == {
        n: sorted(w.shape) for n, w in numbers.items()
    }
    with torch.device("meta"):
        unquantised = LlamaForCausalLM(CONFIG)
    assert sum(map(math.prod, shapes.values())) == count_base_parameters(unquantised)


def test_streamed_and_resident_measure_one_model(packed, plain, tmp_path):
    """Bit for bit, and as a plain checkpoint of the same numbers."""
    folder, numbers = packed
    same = tmp_path / "same"
    same.mkdir()
    for file in plain.iterdir():
        (same / file.name).write_bytes(file.read_bytes())
    save_file({n: w.contiguous() for n, w in numbers.items()}, same / "model.safetensors")
    batches = [make_batch("llama_gqa_lm", [9, 5, 7])]

    def resident(where):
        skeleton = build_skeleton(where, dtype=torch.float32)
        return measure(
            load(skeleton, where, seed=0).model, batches, target_modules="all-linear"
        )

    found, wanted = resident(folder), resident(same)
    streamed = measure_streamed(
        folder, batches, Settings(target_modules="all-linear"), dtype=torch.float32
    )

    assert found.modules == streamed.modules == wanted.modules
    assert found.base_parameters == streamed.base_parameters == wanted.base_parameters
    for module in found.modules:
        energies = found.row_energies[module.name]
        assert (energies == streamed.row_energies[module.name]).all()
        assert energies == pytest.approx(wanted.row_energies[module.name], rel=1e-4)


def test_maps_that_hold_inputs_first_get_the_turned_weight(plain, tmp_path):
    """Packers put outputs first; a square weight of GPT-2 would be taken as it lies."""
    wanted = pack_gpt2(plain, tmp_path)
    options = {"target_modules": ["c_attn", "c_proj"]}
    batches = [make_batch("gpt2_lm", [9, 5, 7])]

    skeleton = build_skeleton(tmp_path, dtype=torch.float32)
    loaded = load(skeleton, tmp_path, seed=0).model

    weights = dict(loaded.named_parameters())
    assert any(weight.shape[0] == weight.shape[1] for weight in wanted.values())
    for name, weight in wanted.items():
        assert torch.equal(weights[name], weight), name
    streamed = measure_streamed(tmp_path, batches, Settings(**options), dtype=torch.float32)
    resident = measure(loaded, batches, **options)
    assert streamed.modules == resident.modules
    for module in resident.modules:
        energies = resident.row_energies[module.name]
        assert (energies == streamed.row_energies[module.name]).all()


def as_bytes(text):
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("gptq", {"quant_method": "hqq"}, r"quantised \(hqq\)"),
        ("gptq", {"bits": 5}, "bits=5.*2 and 3 and 4 and 8 bit are read"),
        ("gptq", {"bits": 3}, "do not fit together"),
        ("gptq", {"format": "gptq_p"}, r"gptq, format gptq_p\).*gptq and gptq_v2 are read"),
        ("gptq", {"checkpoint_format": "marlin"}, "format marlin"),
        ("gptq", {"format": "gptq_v2", "checkpoint_format": "gptq"}, "format gptq and gptq_v2"),
        ("gptq", {"rotation": "hadamard"}, "rotation='hadamard'"),
        ("awq", {"version": "gemv"}, r"format gemm and gemv\)|format gemv\)"),
        ("awq", {"version": None, "format": "gemv_fast"}, r"format gemv_fast\)"),
        ("awq", {"bits": 8}, "bits=8"),
        ("compressed", {"transform_config": {"config_groups": {"a": {}}}}, "transform_config"),
        ("compressed", {"config_groups": {}}, "4 or 8 bit"),
        ("fp8", {"weight_block_size": [8, 16]}, "do not fit together"),
        ("fp8", {"weight_block_size": [0, -1]}, "do not fit together"),
        ("gptq", {"quant_method": "fp8"}, "does not explain"),
    ],
)
def test_what_is_not_read_is_named(plain, tmp_path, method, change, words):
    """With what it is, what is read, and what to do."""
    pack_folder(plain, tmp_path, method)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidCheckpoint, match=words):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("method", "ending", "tensor"),
    [
        (
            "bitsandbytes_4bit",
            "quant_state.bitsandbytes__nf4",
            torch.zeros(9, dtype=torch.uint8),
        ),
        (
            "bitsandbytes_4bit",
            "quant_state.bitsandbytes__nf4",
            as_bytes('{"shape": [1e999, 8]}'),
        ),
        ("bitsandbytes_4bit", "absmax", torch.ones(3)),
        ("bitsandbytes_4bit", "quant_map", torch.ones(3)),
        ("bitsandbytes_8bit", "SCB", torch.ones(3)),
        ("bitsandbytes_in_floats", "proj.weight", torch.ones(5, 1, dtype=torch.bfloat16)),
        ("fp8", "weight_scale_inv", torch.ones(3, 3)),
        ("gptq", "scales", torch.ones(3, 3)),
        ("gptq", "g_idx", torch.ones(3, dtype=torch.int32)),
        ("gptq", "qzeros", None),
        ("compressed", "weight_shape", torch.tensor([2**40, -7])),
        ("compressed", "weight_scale", None),
    ],
)
def test_damaged_parts_are_refused_by_name(plain, tmp_path, method, ending, tensor):
    """Before anything is computed with them."""
    pack_folder(plain, tmp_path, method)
    tensors = load_file(tmp_path / "model.safetensors")
    key = next(n for n in tensors if n.endswith(ending))
    if tensor is None:
        del tensors[key]
    else:
        tensors[key] = tensor
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(InvalidCheckpoint, match="layers"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda g: g + 1000, lambda g: torch.where(g == g[0], -1, g), lambda g: g.float()],
    ids=["beyond", "some negative", "floats"],
)
def test_an_index_out_of_range_is_refused_when_it_is_read(plain, tmp_path, change):
    """Only values tell."""
    pack_folder(plain, tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    key = next(n for n in tensors if n.endswith("g_idx"))
    tensors[key] = change(tensors[key])
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(InvalidCheckpoint, match="cannot be unpacked"):
        Checkpoint(tmp_path).read(key.replace("g_idx", "weight"))


def pack_gptq(plain, folder, told, pack):
    """A folder in a layout of GPTQ, and the weights that it stands for."""
    pack_folder(plain, folder, "gptq")
    tensors, numbers = load_file(folder / "model.safetensors"), {}
    for key, weight in load_file(plain / "model.safetensors").items():
        if ".layers." in key and weight.dim() == 2:
            base = key.removesuffix(".weight")
            parts, numbers[key] = pack(key, weight)
            tensors |= {f"{base}.{ending}": part for ending, part in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= told
    (folder / "config.json").write_text(json.dumps(config))
    return numbers


@pytest.mark.parametrize(
    ("told", "pack"),
    [
        ({"bits": 2}, lambda _, weight: gptq(weight, 2)),
        ({"bits": 3}, lambda _, weight: gptq(weight, 3)),
        ({"bits": 8}, lambda _, weight: gptq(weight, 8)),
        ({"format": "gptq_v2"}, lambda _, weight: gptq(weight, less=0)),
        ({"checkpoint_format": "GPTQ_V2"}, lambda _, weight: gptq(weight, less=0)),
        (
            {"format": "gptq", "checkpoint_format": "gptq", "dynamic": {"+:.*down.*": {}}},
            lambda key, weight: gptq(weight, 8 if "down_proj" in key else 4),
        ),
    ],
    ids=["2 bit", "3 bit", "8 bit", "second format", "by its old key", "bits by module"],
)
def test_layouts_of_gptq(plain, tmp_path, told, pack):
    """Whatever key tells the format, and with as many bits as each module has."""
    numbers = pack_gptq(plain, tmp_path, told, pack)

    checkpoint = Checkpoint(tmp_path)

    for key, wanted in numbers.items():
        torch.testing.assert_close(checkpoint.read(key).float(), wanted, rtol=1e-6, atol=1e-7)


def test_eight_bits_in_the_order_of_a_kernel_are_refused(plain, tmp_path):
    """Only a value tells that the rows of a weight are not its rows."""
    pack_folder(plain, tmp_path, "bitsandbytes_8bit")
    tensors = load_file(tmp_path / "model.safetensors")
    key = next(name for name in tensors if name.endswith("weight_format"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(InvalidCheckpoint, match="weight_format is that of a GPU's kernel"):
        Checkpoint(tmp_path).read(key.replace("weight_format", "weight"))


def test_a_configuration_that_lies_is_refused(plain, tmp_path):
    """It says that weights are packed, and none is."""
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidCheckpoint, match="no weight is stored so"):
        Checkpoint(tmp_path)


def test_blocks_larger_than_a_weight_take_no_more_memory_than_it():
    """A number in a configuration is not what memory is taken for."""
    tensors = {"a.weight": ("I8", (4, 128)), "a.weight_scale": ("F32", (1, 2))}
    quantisation = {"quant_method": "compressed-tensors", "weight_block_size": [10**30, 64]}

    found = unpacked_view(tensors, quantisation, None).packed["a.weight"]

    assert found.options["block"] == (4, 64)


@pytest.mark.parametrize("name", ["h.0.attn.bias", "gpt_neox.layers.0.attention.bias"])
def test_a_causal_mask_among_the_tensors_is_no_packed_weight(name):
    """GPT-2, GPT-Neo and Pythia have kept theirs as bytes."""
    tensors = {name: ("U8", (1, 1, 8, 8)), "a.weight": ("F16", (2, 2))}

    assert logical_shapes({"model_type": "gpt2"}, tensors, None)["a.weight"] == (2, 2)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"a.weight_g_idx": ("I32", (128,))}, "'a.weight_g_idx' lies beside a packed weight"),
        ({"a.weight_global_scale": ("F32", (1,))}, "'a.weight_global_scale' lies beside"),
        ({"b.gate_up_proj": ("F8_E4M3", (2, 4, 128))}, "'b.gate_up_proj' is stored as F8_E4M3"),
    ],
    ids=["groups", "one scale more", "fused experts"],
)
def test_what_may_change_the_numbers_and_is_not_known_is_refused(beside, words):
    """Read without it they would be wrong, and nothing would say so."""
    tensors = {
        "a.weight": ("F8_E4M3", (4, 128)),
        "a.weight_scale": ("F32", (4, 1)),
        "a.bias": ("F32", (4,)),
        "a.input_scale": ("F32", (1,)),
    }
    quantisation = {"quant_method": "compressed-tensors"}
    assert unpacked_view(tensors, quantisation, None).plain == {"a.bias"}

    with pytest.raises(UnreadablePacking, match=words):
        unpacked_view(tensors | beside, quantisation, None)


def test_zero_points_of_another_shape_than_the_scales_are_refused():
    """They would be cut to fit, and the numbers be wrong."""
    tensors = {
        "a.weight": ("I8", (4, 128)),
        "a.weight_scale": ("F32", (4, 1)),
        "a.weight_zero_point": ("I8", (3000, 3000)),
    }

    with pytest.raises(UnreadablePacking, match="do not fit together"):
        unpacked_view(tensors, {"quant_method": "compressed-tensors"}, None)


def compressed_heads(maps, *, floats=(), listed=False):
    """Heads of 4 bit maps with a scale for each of so many groups, and of plain vectors."""
    heads = {f"{n}.weight": ("F32", (n,)) for n in floats}
    for name, (d_out, d_in, groups) in maps.items():
        heads[f"{name}.weight_packed"] = ("I32", (d_out, -(-d_in // 8)))
        heads[f"{name}.weight_scale"] = ("BF16", (d_out, groups))
        heads[f"{name}.weight_shape"] = ("I64", (2,))
        if listed:
            heads[f"{name}.weight_g_idx"] = ("I32", (d_in,))
    return heads


@pytest.mark.parametrize(
    ("maps", "more"),
    [
        ({"up": (36, 60, 1), "down": (60, 36, 1)}, {}),  # each by the other's outputs
        (
            {"gate_up": (90, 64, 1), "down": (64, 45, 1)},
            {},
        ),  # by half of two fused ones' outputs
        (
            {"qkv": (90, 64, 1), "up": (44, 64, 1), "down": (64, 44, 1)},
            {},
        ),  # outputs before halves
        ({"up": (64, 44, 1)}, {"floats": [44]}),  # by a norm
        ({"up": (64, 100, 5)}, {}),  # by its groups, which 104 inputs do not make
        ({"up": (64, 45, 3)}, {"listed": True}),  # by the list of its inputs
        ({"up": (64, 48, 1), "other": (46, 64, 1)}, {"floats": [48]}),  # full words
    ],
)
def test_heads_tell_inputs_whose_last_word_is_partly_empty(maps, more):
    """Where nothing can be read, as on a hub; and what is read is what stands there."""
    quantisation = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
    }
    heads = compressed_heads(maps, **more)

    def read(name):
        return torch.tensor(maps[name.split(".")[0]][:2]).numpy().tobytes()

    for reader in (None, read):
        view = unpacked_view(heads, quantisation, reader)
        assert {n.removesuffix(".weight"): w.shape for n, w in view.packed.items()} == {
            name: (d_out, d_in) for name, (d_out, d_in, _) in maps.items()
        }


def compressed_by_row(weight):
    """One scale for a row of any width, whose last word may be partly empty."""
    width = weight.shape[1]
    codes, scales, zeros = grouped(weight, 4, symmetric=True, size=width)
    tensors = {
        "weight_packed": words(codes, 4),
        "weight_scale": scales.half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return tensors, ((codes - zeros) * scales).half().float()


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
# Fused already where it is stored, with an odd width; and expert by expert, to be fused at loading.
FUSED = {
    "phi3": (Phi3ForCausalLM, {"intermediate_size": 45, "max_position_embeddings": 64}),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        {"intermediate_size": 45, "moe_intermediate_size": 20, "num_experts": 3,
         "num_experts_per_tok": 2, "head_dim": 8, "mlp_only_layers": [0]},
    ),
}  # fmt: skip


HEADS = {
    torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.float32: "F32",
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_gate_and_up_as_one_of_a_width_that_fills_no_word(name, tmp_path, monkeypatch):
    """As a plain checkpoint of the same numbers, by both executors; its heads tell its size."""
    monkeypatch.setitem(PACKERS, "by_row", (compressed_by_row, PACKERS["compressed"][1]))
    model_class, options = FUSED[name]
    torch.manual_seed(0)
    model_class(model_class.config_class(**SIZES, **options)).save_pretrained(tmp_path / "same")
    numbers = pack_folder(tmp_path / "same", tmp_path / "packed", "by_row")
    save_file(
        {n: w.contiguous() for n, w in numbers.items()}, tmp_path / "same/model.safetensors"
    )
    settings = Settings(
        target_modules="all-linear", estimator="exact",
        target_parameters="all" if "moe" in name else None,
    )  # fmt: skip
    batches = [make_batch("llama_gqa_lm", [9, 5, 7])]

    wanted, found, streamed = (
        measure_folder(
            tmp_path / folder, batches, settings, executor=executor, dtype=torch.float32,
            model_class=model_class,
        )
        for folder, executor in (
            ("same", "resident"), ("packed", "resident"), ("packed", "streamed"),
        )
    )  # fmt: skip

    assert any("gate_up_proj" in module.name for module in found.modules)
    assert found.modules == streamed.modules == wanted.modules
    for module in found.modules:
        energies = found.example_energies[module.name]
        assert (energies == streamed.example_energies[module.name]).all()
        assert energies == pytest.approx(wanted.example_energies[module.name], rel=1e-5)
    stored = load_file(tmp_path / "packed/model.safetensors")
    heads = {n: (HEADS[t.dtype], tuple(t.shape)) for n, t in stored.items()}
    view = unpacked_view(heads, PACKERS["compressed"][1], None)
    assert {n: w.shape for n, w in view.packed.items()} == {
        n: tuple(numbers[n].shape) for n in view.packed
    }
