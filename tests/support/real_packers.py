"""Tiny models that the packers of the field have packed, and what these say the weights are.

Each needs its package, in the environment that ``make quantised`` makes. Codes, scales and zero
points are chosen here, as a calibration would; what lies in the files is the packers' own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from support.packing import grouped
from support.quantised import CONFIG

GROUP = 16  # the least that all of them take
# The tensors of a packed layer by ending, and the weight (O, I) as the packer unpacks it.
Packed = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Packer:
    """A packer: its package, and what packs a folder and says which weights it holds."""

    package: str
    pack: Callable[[Path], dict[str, Tensor]]


def pack_with(name: str, folder: Path) -> dict[str, Tensor]:
    """Pack a tiny model into a folder; the test is skipped where the package is not there."""
    packer = REAL_PACKERS[name]
    if find_spec(packer.package) is None:
        pytest.skip(f"needs {packer.package}: make quantised")
    return packer.pack(folder)


def a_model() -> LlamaForCausalLM:
    """The tiny model, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(CONFIG)


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """The maps that quantisers pack: those of its blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }


def by_layer(
    told: dict[str, Any], pack: Callable[[nn.Linear], Packed]
) -> Callable[[Path], dict[str, Tensor]]:
    """Pack with what packs a layer: its buffers are what a packer's own save writes."""

    def packed(folder: Path) -> dict[str, Tensor]:
        model = a_model()
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        numbers = dict(tensors)
        for name, linear in linears_of(model).items():
            del tensors[f"{name}.weight"]
            parts, numbers[f"{name}.weight"] = pack(linear)
            tensors |= {f"{name}.{ending}": part.contiguous() for ending, part in parts.items()}
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        told_of_model = {"architectures": [type(model).__name__], "quantization_config": told}
        config = model.config.to_dict() | told_of_model
        (folder / "config.json").write_text(json.dumps(config))
        return numbers

    return packed


@dataclass(frozen=True)
class Codes:
    """A layer whose weight has been rounded to codes: scales and zero points (O, G)."""

    linear: nn.Linear
    scales: Tensor
    zeros: Tensor
    group: Tensor


def coded(
    linear: nn.Linear, bits: int, *, symmetric: bool = False, in_order: bool = True
) -> Codes:
    """Round a layer; out of order, inputs are grouped as an order of activations would."""
    d_in = linear.in_features
    generator = torch.Generator().manual_seed(3)
    order = torch.arange(d_in) if in_order else torch.randperm(d_in, generator=generator)
    back = order.argsort()
    codes, scales, zeros = grouped(
        linear.weight.detach()[:, order], bits, symmetric=symmetric, size=GROUP
    )
    zeros = zeros.clamp(min=1)  # the first format of GPTQ cannot hold a zero point of 0
    group = (torch.arange(d_in) // GROUP)[back]
    rounded = nn.Linear(d_in, linear.out_features, bias=False)
    rounded.weight.data = (codes[:, back] - zeros[:, group]) * scales[:, group]
    return Codes(rounded, scales, zeros.float(), group.int())


def _autoawq(linear: nn.Linear) -> Packed:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    made = coded(linear, 4)
    layer = WQLinear_GEMM.from_linear(
        made.linear, 4, GROUP, scales=made.scales.T, zeros=made.zeros.T
    )
    weight = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP)
    return layer.state_dict(), weight.T


def _autogptq(**options: Any) -> Callable[[nn.Linear], Packed]:
    def pack(linear: nn.Linear) -> Packed:
        bits = options["bits"]
        made = coded(
            linear, bits, symmetric=options.get("symmetric", False),
            in_order=options.get("in_order", True),
        )  # fmt: skip
        kernel = _file_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py").QuantLinear
        layer = kernel(bits, GROUP, linear.in_features, linear.out_features, False)
        layer.pack(made.linear, made.scales, made.zeros, made.group)
        layer.scales = layer.scales.half()
        # The kernel unpacks within its own forward pass.
        weight = layer(torch.eye(linear.in_features, dtype=torch.half)).T
        return layer.state_dict(), weight

    return pack


def _file_of(package: str, path: str) -> ModuleType:
    """A module of a package that does not import as a whole beside a present-day transformers."""
    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0]) / path
    spec = spec_from_file_location(f"{package}_alone", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gptqmodel_awq(linear: nn.Linear) -> Packed:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    made = coded(linear, 4)
    layer = AwqTorchLinear(4, GROUP, False, False, linear.in_features, linear.out_features)
    layer.pack(made.linear, made.scales, made.zeros)
    weight = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP)
    return layer.state_dict(), weight.T


def _gptqmodel(form: str, **options: Any) -> Callable[[nn.Linear], Packed]:
    def pack(linear: nn.Linear) -> Packed:
        from gptqmodel import QuantizeConfig
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

        bits, in_order = options["bits"], options.get("in_order", True)
        symmetric = options.get("symmetric", False)
        made = coded(linear, bits, symmetric=symmetric, in_order=in_order)
        layer = TorchLinear(
            bits, GROUP, symmetric, not in_order, linear.in_features, linear.out_features
        )
        layer.pack(made.linear, made.scales, made.zeros, made.group)
        weight = layer.dequantize_weight().T.clone()
        if form == "gptq":
            config = QuantizeConfig(bits=bits, group_size=GROUP)
            convert_gptq_v2_to_v1_format_module(layer, config)
        return layer.state_dict(), weight

    return pack


def _compressed_tensors(preset: str | None = None, **weights: Any) -> Packer:
    """A whole model, with the configuration that ModelCompressor writes."""

    def packed(folder: Path) -> dict[str, Tensor]:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            apply_quantization_config,
            preset_name_to_scheme,
        )

        if preset is None:
            scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        else:
            scheme = preset_name_to_scheme(preset, ["Linear"])
        told = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
        model = a_model()
        apply_quantization_config(model, told)
        for linear in linears_of(model).values():
            _calibrate(linear, scheme.weights)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        compressor.decompress_model(model)
        plain = a_model().state_dict()
        return {name: model.state_dict()[name].clone() for name in plain}

    return Packer("compressed_tensors", packed)


def _calibrate(linear: Any, args: Any) -> None:
    """Scales and zero points from the least and the greatest weight of each group."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight = linear.weight.detach()
    if args.group_size:
        parts = weight.unflatten(1, (-1, args.group_size))
        low, high = parts.amin(2), parts.amax(2)
    elif args.block_structure:
        rows, columns = args.block_structure
        parts = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        low, high = parts.amin((1, 3)), parts.amax((1, 3))
    elif args.strategy == "tensor":
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
    else:
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    of_all = None
    if hasattr(linear, "weight_global_scale"):
        of_all = generate_gparam(weight.amin().reshape(1), weight.amax().reshape(1))
        linear.weight_global_scale.data = of_all
    scales, zeros = calculate_qparams(low, high, args, global_scale=of_all)
    linear.weight_scale.data = scales.to(linear.weight_scale.dtype)
    if hasattr(linear, "weight_zero_point"):
        linear.weight_zero_point.data = zeros.to(linear.weight_zero_point.dtype)


def _gptq_told(**told: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "group_size": GROUP, **told}


_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
_GROUPS = {"group_size": 32, "strategy": "group"}
REAL_PACKERS = {
    "autoawq": Packer("awq", by_layer(_AWQ, _autoawq)),
    "autogptq_4": Packer("auto_gptq", by_layer(_gptq_told(bits=4), _autogptq(bits=4))),
    "autogptq_3": Packer("auto_gptq", by_layer(_gptq_told(bits=3), _autogptq(bits=3))),
    "autogptq_8_symmetric": Packer(
        "auto_gptq", by_layer(_gptq_told(bits=8, sym=True), _autogptq(bits=8, symmetric=True))
    ),
    "autogptq_2_act_order": Packer(
        "auto_gptq",
        by_layer(_gptq_told(bits=2, desc_act=True), _autogptq(bits=2, in_order=False)),
    ),
    "gptqmodel_4": Packer(
        "gptqmodel",
        by_layer(_gptq_told(bits=4, checkpoint_format="gptq"), _gptqmodel("gptq", bits=4)),
    ),
    "gptqmodel_3": Packer(
        "gptqmodel",
        by_layer(_gptq_told(bits=3, checkpoint_format="gptq"), _gptqmodel("gptq", bits=3)),
    ),
    "gptqmodel_awq": Packer("gptqmodel", by_layer(_AWQ, _gptqmodel_awq)),
    "gptqmodel_4_v2_act_order": Packer(
        "gptqmodel",
        by_layer(
            _gptq_told(bits=4, desc_act=True, checkpoint_format="gptq_v2"),
            _gptqmodel("gptq_v2", bits=4, in_order=False),
        ),
    ),
    "gptqmodel_8_symmetric": Packer(
        "gptqmodel",
        by_layer(
            _gptq_told(bits=8, sym=True, checkpoint_format="gptq"),
            _gptqmodel("gptq", bits=8, symmetric=True),
        ),
    ),
    "compressed_int4_group": _compressed_tensors(num_bits=4, **_GROUPS),
    "compressed_int4_asymmetric": _compressed_tensors(num_bits=4, symmetric=False, **_GROUPS),
    "compressed_int4_channel": _compressed_tensors(num_bits=4, strategy="channel"),
    "compressed_int8_channel": _compressed_tensors(num_bits=8, strategy="channel"),
    "compressed_w8a8": _compressed_tensors("W8A8"),
    "compressed_fp8": _compressed_tensors("FP8_DYNAMIC"),
    "compressed_fp8_tensor": _compressed_tensors("FP8"),
    "compressed_fp8_block": _compressed_tensors(
        num_bits=8, type="float", strategy="block", block_structure=[16, 16]
    ),
    "compressed_mxfp4": _compressed_tensors("MXFP4A16"),
    "compressed_nvfp4": _compressed_tensors("NVFP4A16"),
    "compressed_mxfp8": _compressed_tensors("MXFP8A16"),
}
