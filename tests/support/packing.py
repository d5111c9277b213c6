"""Checkpoints as quantisers write them, packed by hand from a plain one: slow, and spelt out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of an integer holds
GROUP = 8
# The numbers that four bits with one for the fraction stand for.
FP4 = torch.tensor([s * n for s in (1, -1) for n in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])
# What packs a weight (O, I): its tensors by ending, and the numbers that these stand for.
Packed = tuple[dict[str, Tensor], Tensor]


def words(numbers: Tensor, bits: int) -> Tensor:
    """Put unsigned numbers (rows by columns) into 32 bit words along the columns, end to end."""
    rows = []
    for row in numbers.tolist():
        whole = sum(int(n) << bits * place for place, n in enumerate(row))
        n_words = -(-len(row) * bits // 32)
        rows.append([whole >> 32 * word & 0xFFFFFFFF for word in range(n_words)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


def grouped(
    weight: Tensor, bits: int, *, symmetric: bool, size: int = GROUP
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (O, I), scales (O, G) and zero points (O, G), a group being some inputs of a row."""
    parts = weight.float().unflatten(1, (-1, size))
    low, high = parts.amin(2), parts.amax(2)
    most = 2**bits - 1
    if symmetric:
        scales = parts.abs().amax(2) / (most / 2)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        scales = (high - low) / most
        zeros = (-low / scales).round().clamp(0, most)
    scales = scales.half().float()
    codes = ((parts / scales[..., None]).round() + zeros[..., None]).clamp(0, most)
    return codes.flatten(1).int(), scales, zeros.int()


def meant(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The numbers that codes stand for, at half precision as kernels have it."""
    values = (codes.unflatten(1, (-1, GROUP)) - zeros[..., None]) * scales[..., None]
    return values.flatten(1).half().float()


def gptq(weight: Tensor, bits: int = 4, less: int = 1) -> Packed:
    """Inputs along an integer; zero points stored less one; a group listed for each input."""
    codes, scales, zeros = grouped(weight, bits, symmetric=False)
    zeros = zeros.clamp(min=1)
    tensors = {
        "qweight": words(codes, bits).T.contiguous(),
        "qzeros": words(zeros.T - less, bits),
        "scales": scales.T.contiguous().half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return tensors, meant(codes, scales, zeros)


def awq(weight: Tensor) -> Packed:
    """Outputs along an integer, in an order of their own."""
    codes, scales, zeros = grouped(weight, 4, symmetric=False)

    def columns(numbers: Tensor) -> Tensor:
        return words(numbers.T.unflatten(1, (-1, 8))[..., list(AWQ_COLUMNS)].flatten(1), 4)

    tensors = {
        "qweight": columns(codes),
        "qzeros": columns(zeros),
        "scales": scales.T.contiguous().half(),
    }
    return tensors, meant(codes, scales, zeros)


def compressed(weight: Tensor) -> Packed:
    """Integers of compressed-tensors: inputs along a word, its shape beside it."""
    codes, scales, zeros = grouped(weight, 4, symmetric=True)
    tensors = {
        "weight_packed": words(codes, 4),
        "weight_scale": scales.half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return tensors, meant(codes, scales, zeros)


def fp8(weight: Tensor) -> Packed:
    """A scale for each block of 16 by 16."""
    d_out, d_in = weight.shape
    scales = torch.zeros(-(-d_out // 16), -(-d_in // 16))
    stored, numbers = torch.zeros(d_out, d_in), torch.zeros(d_out, d_in)
    for row in range(0, d_out, 16):
        for column in range(0, d_in, 16):
            block = weight[row : row + 16, column : column + 16].float()
            scale = block.abs().max() / 448
            scales[row // 16, column // 16] = scale
            kept = (block / scale).to(torch.float8_e4m3fn).float()
            stored[row : row + 16, column : column + 16] = kept
            numbers[row : row + 16, column : column + 16] = kept * scale
    tensors = {"weight": stored.to(torch.float8_e4m3fn), "weight_scale_inv": scales}
    return tensors, numbers


def fp8_by_row(weight: Tensor) -> Packed:
    """A scale for each output, as compressed-tensors has it."""
    scales = weight.float().abs().amax(1, keepdim=True) / 448
    stored = (weight.float() / scales).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scales}, stored.float() * scales


def of_powers(weight: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Numbers in units of a power of two for each group (O, G, I / G), and the exponents (O, G)."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    exponents = (groups.abs().amax(2) / most).log2().ceil()
    return groups / exponents.exp2()[..., None], exponents


def mxfp8(weight: Tensor) -> Packed:
    """A byte to a number, and one to the power of two that a group of inputs is scaled with."""
    units, exponents = of_powers(weight, 448)
    stored = units.to(torch.float8_e4m3fn)
    numbers = stored.float() * exponents.exp2()[..., None]
    tensors = {
        "weight": stored.flatten(1),
        "weight_scale_inv": (exponents + 127).to(torch.uint8),
    }
    return tensors, numbers.flatten(1)


def fp4(weight: Tensor) -> Packed:
    """Two numbers to a byte, the first of them in the low half; powers of two as scales."""
    units, exponents = of_powers(weight, 6)
    codes = (units[..., None] - FP4).abs().argmin(-1)
    numbers = FP4[codes] * exponents.exp2()[..., None]
    tensors = {
        "weight": in_pairs(codes).flatten(1).view(torch.int8),
        "weight_scale_inv": (exponents + 127).to(torch.uint8),
    }
    return tensors, numbers.flatten(1)


def in_pairs(codes: Tensor) -> Tensor:
    """Two codes to a byte, along the last axis."""
    pairs = codes.unflatten(-1, (-1, 2))
    return (pairs[..., 0] + pairs[..., 1] * 16).to(torch.uint8)


def fp4_blocks(experts: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks (E, O, I / 32, 16) and exponents of fused experts (E, I, O)."""
    groups = experts.float().transpose(1, 2).unflatten(2, (-1, 32))
    exponents = (groups.abs().amax(-1, keepdim=True) / 6).log2().ceil()
    codes = (groups[..., None] / exponents.exp2()[..., None] - FP4).abs().argmin(-1)
    return in_pairs(codes), (exponents[..., 0] + 127).to(torch.uint8)


def bitsandbytes_8bit(weight: Tensor) -> Packed:
    """A byte each; the largest number of a row is 127."""
    largest = weight.float().abs().amax(1)
    stored = (weight.float() / largest[:, None] * 127).round().to(torch.int8)
    tensors = {
        "weight": stored,
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, stored.float() * (largest / 127)[:, None]


def bitsandbytes_4bit(weight: Tensor) -> Packed:
    """Two codes to a byte, the first of them in the high half; 32 numbers share a scale."""
    code = torch.tensor(
        [-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1]
    )
    blocks = weight.float().flatten().unflatten(0, (-1, 32))
    scales = blocks.abs().amax(1)
    codes = ((blocks / scales[:, None])[..., None] - code).abs().argmin(-1)
    pairs = codes.flatten().unflatten(0, (-1, 2))
    state = {
        "shape": list(weight.shape), "blocksize": 32, "dtype": "float32", "quant_type": "nf4",
    }  # fmt: skip
    tensors = {
        "weight": (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)[:, None],
        "weight.absmax": scales,
        "weight.quant_map": code,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            [*json.dumps(state).encode()], dtype=torch.uint8
        ),
    }
    return tensors, (code[codes] * scales[:, None]).reshape(weight.shape)


def bitsandbytes_in_floats(weight: Tensor) -> Packed:
    """The same bytes, called numbers of half precision, as FSDP shards no bytes."""
    tensors, numbers = bitsandbytes_4bit(weight)
    stored = tensors["weight"].flatten().view(torch.bfloat16)[:, None]
    return tensors | {"weight": stored}, numbers


_COMPRESSED = {"quant_method": "compressed-tensors"}
PACKERS: dict[str, tuple[Callable[[Tensor], Packed], dict[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "compressed": (
        compressed,
        _COMPRESSED | {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
    ),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "fp8_by_row": (fp8_by_row, _COMPRESSED),
    "mxfp8": (mxfp8, {"quant_method": "mxfp8", "weight_block_size": [1, GROUP]}),
    "fp4": (fp4, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "bitsandbytes_4bit": (
        bitsandbytes_4bit, {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ),
    "bitsandbytes_in_floats": (
        bitsandbytes_in_floats,
        {
            "quant_method": "bitsandbytes", "load_in_4bit": True,
            "bnb_4bit_quant_storage": "bfloat16",
        },
    ),
    "bitsandbytes_8bit": (
        bitsandbytes_8bit, {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
}  # fmt: skip


def pack_folder(plain: Path, folder: Path, name: str) -> dict[str, Tensor]:
    """Pack the linear maps of a plain checkpoint's blocks; its weights as they are meant."""
    packer, told = PACKERS[name]
    folder.mkdir(exist_ok=True)
    for file in plain.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Tensor] = {}
    for key, weight in load_file(plain / "model.safetensors").items():
        if ".layers." in key and weight.dim() == 2:
            parts, numbers[key] = packer(weight)
            base = key.removesuffix(".weight")
            tensors |= {f"{base}.{ending}": part for ending, part in parts.items()}
        else:
            tensors[key] = numbers[key] = weight
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": told}
    (folder / "config.json").write_text(json.dumps(config))
    return numbers


def pack_gpt2(plain: Path, folder: Path) -> dict[str, Tensor]:
    """A tiny GPT-2 in 8 bit beside another model's tokenizer; its packed weights as GPT-2 has them."""
    vocabulary = json.loads((plain / "config.json").read_text())["vocab_size"]
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    for file in plain.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    wanted = {}
    packer, told = PACKERS["bitsandbytes_8bit"]
    for key in [n for n in tensors if n.endswith(("c_proj.weight", "c_attn.weight"))]:
        parts, numbers = packer(tensors.pop(key).T)
        wanted[key] = numbers.T
        tensors |= {f"{key.removesuffix('.weight')}.{n}": t for n, t in parts.items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    written = json.loads((folder / "config.json").read_text()) | {"quantization_config": told}
    (folder / "config.json").write_text(json.dumps(written))
    return wanted
