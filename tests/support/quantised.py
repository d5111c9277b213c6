"""Tiny language models whose linear maps real quantisers have packed, loaded on the CPU.

Each needs its package: ``make quantised`` has all, the suite's own environment has some.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

# On a CPU bitsandbytes 0.50 unpacks 4 bit weights wrongly whose rows are no whole blocks of 64.
CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, initializer_range=0.2,
    tie_word_embeddings=False,
)  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Format:
    """A way to quantise a model: while transformers loads it, map by map, or by a packer before."""

    package: str
    config: Callable[[], Any] = lambda: None
    of_map: Callable[[nn.Linear], nn.Module] | None = None
    packer: str | None = None
    is_half: bool = False  # kernels that multiply in half precision, whatever comes in


def _bitsandbytes(**options: Any) -> Callable[[], Any]:
    def config() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **options)

    return config


def _torchao(name: str) -> Callable[[], Any]:
    def config() -> Any:
        from torchao import quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, name)())

    return config


def _quanto() -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


def _gptq() -> Any:
    from transformers import GPTQConfig

    return GPTQConfig(bits=4, backend="gptq_torch")  # bits are those of the checkpoint


def _hqq(linear: nn.Linear) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=16)
    options = {"device": "cpu", "compute_dtype": torch.float32}
    packed: nn.Module = HQQLinear(linear, config, **options)
    return packed


FORMATS = {
    "hqq_4": Format("hqq", of_map=_hqq),
    "quanto_int8": Format("optimum.quanto", _quanto),
    "bitsandbytes_nf4": Format(
        "bitsandbytes", _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    ),
    "bitsandbytes_fp4_nested": Format(
        "bitsandbytes",
        _bitsandbytes(
            load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True
        ),
    ),
    "bitsandbytes_int8": Format("bitsandbytes", _bitsandbytes(load_in_8bit=True)),
    "torchao_int8": Format("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao_fp8": Format("torchao", _torchao("Float8WeightOnlyConfig")),
    # By the kernel that transformers takes by itself on a CPU, and by one as wide as inputs are.
    "gptq_4_fused": Format("gptqmodel", packer="gptqmodel_4", is_half=True),
    "gptq_4": Format("gptqmodel", _gptq, packer="gptqmodel_4_v2_act_order"),
    "gptq_3": Format("gptqmodel", _gptq, packer="gptqmodel_3"),
    "gptq_8": Format("gptqmodel", packer="gptqmodel_8_symmetric"),
    "awq_4": Format("gptqmodel", packer="gptqmodel_awq", is_half=True),
}


def folder_of_a_model(folder: Path, config: Any = CONFIG) -> Path:
    """A folder with a tiny model in full precision, which formats quantise as they load it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def quantised(name: str, folder: Path) -> nn.Module:
    """Load a folder's model in a format; the test is skipped where its package is not there."""
    form = FORMATS[name]
    try:
        there = find_spec(form.package) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        there = False
    if not there:
        pytest.skip(f"needs {form.package}: make quantised")
    return loaded(name, folder if form.packer is None else _packed(form.packer, folder))


def loaded(name: str, folder: Path) -> nn.Module:
    """Load a folder in a format, or one that is packed in it."""
    form = FORMATS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # packages tell of kernels that this machine lacks
        # Without one a packed folder is loaded by its own; told of None, as if it were plain.
        told = {} if (config := form.config()) is None else {"quantization_config": config}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **told)
        if form.of_map is not None:
            for path, module in [*model.named_modules()]:
                if isinstance(module, nn.Linear) and ".layers." in path:
                    model.set_submodule(path, form.of_map(module))
    return model


def _packed(name: str, plain: Path) -> Path:
    """The folder of a model that a packer has packed, beside the plain one."""
    from support.real_packers import pack_with  # which reads what is above

    folder = plain.parent / f"{plain.name}-{name}"
    if not folder.exists():
        pack_with(name, folder)
    return folder
