"""No configuration makes transformers fetch or run what is no part of it."""

import json
from pathlib import Path

import pytest
from transformers import PretrainedConfig
from transformers.integrations.hub_kernels import is_kernel

from fimlora_jobs.models.code_fields import BUILT_IN, CHOICES, check_no_code
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_worker.inputs.models import UnsupportedArchitecture, read_config
from support.model_folders import make_encoder

KERNEL = "evil-org/kernel"


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation": KERNEL},
        {"attn_implementation": f"paged|{KERNEL}"},
        {"attn_implementation": f"{KERNEL}@main:attention"},
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation_internal": KERNEL},
        {"attn_implementation": {"": "eager", "text_config": KERNEL}},
        {"text_config": {"_attn_implementation": KERNEL}},
        {"parts": [{"attn_implementation": KERNEL}]},
        {"_attn_implementation": ["eager"]},
        {"_attn_implementation": 1},
        {"experts_implementation": KERNEL},
        {"_experts_implementation_internal": "deepgemm"},
        {"use_kernels": True},
        {"text_config": {"kernel_config": {"RMSNorm": f"{KERNEL}:RMSNorm"}}},
        {"allow_all_kernels": 1},
        {"use_pretrained_backbone": True},
        {"transformers_weights": "weights.bin"},
    ],
    ids=str,
)
def test_a_field_that_names_code_or_weights_from_elsewhere_is_refused(fields):
    """At any depth, by its name; where a value is shown it is cut."""
    with pytest.raises(ModelRefused, match=r"config\.json has ") as refused:
        check_no_code({"model_type": "bert", **fields})

    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", sorted(filter(None, BUILT_IN)))
def test_what_transformers_brings_is_allowed(name):
    """By either spelling, for parts too; and what forbids nothing."""
    check_no_code({"_attn_implementation": name, "text_config": {"attn_implementation": name}})
    check_no_code(
        {"attn_implementation": {"": name, "text_config": None}, "use_kernels": False}
    )
    check_no_code({"auto_map": {"AutoConfig": "x.Y"}, "_attn_implementation_autoset": True})


def test_every_spelling_that_transformers_reads_is_known():
    """A configuration keeps the choice under one of these names."""
    config = PretrainedConfig(attn_implementation="eager", experts_implementation="eager")

    read = {name for name in vars(config) if "implementation" in name}
    assert read <= CHOICES
    assert not any(is_kernel(name) for name in BUILT_IN)


def test_a_worker_refuses_it_before_transformers_reads_the_folder(tmp_path: Path):
    """The record may have been written by somebody else."""
    folder = make_encoder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": KERNEL}))

    with pytest.raises(UnsupportedArchitecture, match="_attn_implementation"):
        read_config(folder)
