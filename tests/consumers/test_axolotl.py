"""Axolotl takes the YAML through its own schema and adapter loader to the planned ranks."""

import pytest
import yaml

from support.peft_models import lora_tensors, planned, resolved

pytestmark = pytest.mark.consumer("axolotl")

# What every run needs beside the adapter; the data are not read here.
REST = {
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "num_epochs": 1,
}


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch):
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")


def settings_of(text: str, **options):
    """The configuration as ``axolotl train`` holds it after validation."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    return validate_config(DictDefault(yaml.safe_load(text) | REST | options))


def trainable(model):
    """Names of the parameters that an optimiser would get."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_schema_keeps_every_exported_key(llama):
    """None is unknown, dropped or rounded."""
    text = llama.export("axolotl")

    settings = settings_of(text)

    exported = yaml.safe_load(text)
    assert {key: settings[key] for key in exported} == exported


def test_its_loader_builds_the_plan(llama):
    """The PEFT model that Axolotl trains."""
    from axolotl.loaders.adapter import load_lora

    model, _ = load_lora(llama.load(), settings_of(llama.export("axolotl")))

    assert resolved(model) == planned(llama.plan)
    assert trainable(model) == lora_tensors(model).keys()


def test_its_loader_trains_an_adapter_folder_on(llama, tmp_path):
    """The folder with initial weights under the same settings."""
    from axolotl.loaders.adapter import load_lora

    folder = llama.write_adapter(tmp_path / "adapter")
    settings = settings_of(llama.export("axolotl"), lora_model_dir=str(folder))

    model, _ = load_lora(llama.load(), settings)

    assert resolved(model) == planned(llama.plan)
    assert trainable(model) == lora_tensors(model).keys()


def test_a_fraction_of_an_alpha_is_refused_by_the_schema(llama):
    """Why the export refuses a plan with one."""
    exported = yaml.safe_load(llama.export("axolotl"))
    name = next(iter(exported["lora_alpha_pattern"]))
    exported["lora_alpha_pattern"][name] = 2.5

    with pytest.raises(ValueError, match="lora_alpha_pattern"):
        settings_of(yaml.safe_dump(exported))
