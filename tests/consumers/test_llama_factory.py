"""LLaMA-Factory's own parser and loader start from the exported folder.

Its data pipeline imports torchaudio, whose wheels need CUDA's libraries, so that no step is
taken here.
"""

import pytest
import yaml

from support.peft_models import planned, resolved

pytestmark = pytest.mark.consumer("llama-factory")


@pytest.fixture
def settings(llama, tmp_path):
    """The exported YAML with what every run needs beside it; the data are not read here."""
    llama.write_adapter(tmp_path / "adapter")
    return yaml.safe_load(llama.export("llama-factory")) | {
        "stage": "sft",
        "do_train": True,
        "dataset": "rows",
        "template": "empty",
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "use_cpu": True,
    }


def loaded(settings):
    """The model that ``llamafactory-cli train`` would train."""
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer

    model_args, _, _, finetuning_args, _ = get_train_args(settings)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    return load_model(tokenizer, model_args, finetuning_args, is_trainable=True)


def test_its_loader_resolves_the_plan(llama, settings):
    """Its own parser and loader, which know no patterns, give every module its rank."""
    model = loaded(settings)

    assert resolved(model) == planned(llama.plan)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)


def test_without_the_folder_the_ranks_would_be_lost(llama, settings):
    """Why the export names no rank: a new adapter has one for all modules."""
    del settings["adapter_name_or_path"]

    model = loaded(settings)

    assert len({rank for rank, _, _ in resolved(model).values()}) == 1
