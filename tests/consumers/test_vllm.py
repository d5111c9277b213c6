"""vLLM reads an adapter's folder with its own loader and scales every module as planned.

Loading needs no device; serving on a CPU needs another build than the released wheel.
"""

import shlex

import pytest
from safetensors.torch import load_file

from support.consumers import TARGETS

pytestmark = pytest.mark.consumer("vllm")


def launched(llama):
    """The exported arguments, by name."""
    words = shlex.split(llama.export("vllm").splitlines()[-1])
    assert words[0] == "--enable-lora"
    return dict(zip(words[1::2], words[2::2], strict=True))


def loaded(folder, max_lora_rank):
    """What the server does when it is given an adapter, up to the device."""
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    helper = PEFTHelper.from_local_dir(str(folder), None)
    helper.validate_legal(LoRAConfig(max_lora_rank=max_lora_rank))
    # Not "cpu": tensors of that name are pinned, for which a GPU must be there.
    return LoRAModel.from_local_checkpoint(
        str(folder), set(TARGETS), helper, lora_model_id=1, device="cpu:0"
    )


@pytest.mark.parametrize("layout", ["B", "C"])
def test_every_module_is_served_with_the_one_scale(llama, tmp_path, layout):
    """Ranks from the patterns agree with the tensors' shapes."""
    folder = llama.write_adapter(tmp_path / "adapter", layout=layout)
    max_rank = int(launched(llama)["--max-lora-rank"])

    served = loaded(folder, max_rank).loras

    ranks = llama.plan.ranks if layout == "B" else dict.fromkeys(llama.plan.ranks, 8)
    assert {name: lora.rank for name, lora in served.items()} == ranks
    assert {lora.scaling for lora in served.values()} == {llama.plan.scale}
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, lora in served.items():
        prefix = f"base_model.model.{name}"
        assert lora.lora_a.equal(tensors[f"{prefix}.lora_A.weight"])
        assert lora.lora_b.equal(tensors[f"{prefix}.lora_B.weight"])


def test_a_smaller_limit_than_the_exported_is_refused(llama, tmp_path):
    """The largest rank is 8, and the next limit below it is 1."""
    folder = llama.write_adapter(tmp_path / "adapter")

    assert launched(llama)["--max-lora-rank"] == "8"
    with pytest.raises(ValueError, match="LoRA rank 8 is greater than max_lora_rank 1"):
        loaded(folder, 1)


def test_the_known_limits_are_its_own():
    """What the export chooses from is what the server allows."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    from fimlora.adapter.exports import SERVER_RANKS

    assert get_args(MaxLoRARanks) == SERVER_RANKS
