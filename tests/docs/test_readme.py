"""The README's code runs, and what it says about settings is true."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from fimlora_contract.environment import names_read
from support.models import minilm_path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CALIBRATED_TEXTS = ["Read a file.", "Sort a list in place.", "Open a socket.", "Parse a date."]


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def namespace() -> dict[str, object]:
    """The two names that the README's code takes as given."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(CALIBRATED_TEXTS, padding=True, return_tensors="pt")
    labels = batch["input_ids"][:, 1] % 2
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return {"base_model": model, "dataloader": [{**batch, "labels": labels}]}


def test_the_library_examples_run_as_printed(namespace, tmp_path, monkeypatch):
    """Both give an adapter folder with the budget they ask for."""
    monkeypatch.chdir(tmp_path)
    live, staged = python_blocks()

    exec(staged, namespace)  # before the other one, which wraps the model
    exec(live, namespace)

    assert (tmp_path / "planned" / "adapter_config.json").is_file()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    plan = namespace["plan"]
    assert plan.spent.ranks == 8 * len(plan.modules)


def test_every_setting_named_is_read_by_somebody():
    """No variable of the table is a wish."""
    read: set[str] = set()
    for package in ("fimlora_client", "fimlora_service", "fimlora_worker"):
        read |= names_read(import_module(f"{package}.settings").Settings)
    table = README.split("## Configuration")[1].split("\n## ")[0]

    named = set(re.findall(r"`((?:FIMLORA|HF|REDIS)_[A-Z_]+)`", table))

    assert len(named) > 8
    assert named <= read
