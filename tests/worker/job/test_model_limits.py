"""A job keeps to what its model has room for, or says by name what does not fit."""

from pathlib import Path

import pytest
import torch
import transformers

from fimlora_contract.jobs import JobStatus
from support.executor_jobs import ended
from support.jobs import Jobs
from support.model_folders import SPECIAL, WORDS, make_tokenizer

N_TOKENS = len(SPECIAL) + len(WORDS)
LONG = [{"text": f"w{n} " + " ".join(["w1 w2 w3"] * 30), "label": n % 2} for n in range(8)]
UNEVEN = [{"text": " ".join(WORDS[: 2 + 5 * n]), "label": n % 2} for n in range(8)]
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip


def make_model(folder: Path, kind: str, tokenizer, **options) -> str:
    """A tiny base model of some kind, with a tokenizer; gives its name."""
    config = getattr(transformers, f"{kind}Config")(**options)
    model_class = getattr(transformers, options.pop("head", f"{kind}Model"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder.name


@pytest.fixture
def models(data_dir: Path, model_folders: Path) -> Path:
    """A folder of models that only one test sees."""
    (data_dir / "models").unlink()
    (data_dir / "models").mkdir()
    return data_dir / "models"


def run(jobs: Jobs, run_queue, model: str, rows, executor: str):
    calibration = {"batch_size": 4, "n_batches": 2, "max_length": 512, "executor": executor}
    job_id = jobs.submit(
        model=model,
        dataset={"source": "inline", "rows": rows},
        calibration=calibration,
        target_modules="all-linear",
    )
    run_queue()
    return ended(jobs, job_id)


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("kind", ["Roberta", "Camembert", "MPNet"])
def test_texts_are_cut_where_positions_behind_the_padding_end(
    jobs, run_queue, models, kind, executor
):
    """32 rows are 29 positions where padding is token 2, which the tokenizer knows nothing of."""
    tokenizer = make_tokenizer(pad_token="[CLS]")
    tokenizer.model_max_length = int(1e30)
    name = make_model(
        models / "one", kind, tokenizer, vocab_size=N_TOKENS, pad_token_id=2, **SIZES
    )

    job = run(jobs, run_queue, name, LONG, executor)

    assert job.status is JobStatus.SUCCEEDED, job.error


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_padding_that_the_model_has_no_embedding_of_is_another_token(
    jobs, run_queue, models, executor
):
    """It is masked; a tokenizer that has got a token of its own for it is common."""
    tokenizer = make_tokenizer(eos_token="[EOS]")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == N_TOKENS
    name = make_model(
        models / "one", "Llama", tokenizer, vocab_size=N_TOKENS, num_key_value_heads=1, **SIZES
    )

    job = run(jobs, run_queue, name, UNEVEN, executor)

    assert job.status is JobStatus.SUCCEEDED, job.error


def test_a_token_that_the_model_has_no_embedding_of_is_named(jobs, run_queue, models):
    """Before anything is measured."""
    tokenizer = make_tokenizer(pad_token="[PAD]")
    name = make_model(models / "one", "Bert", tokenizer, vocab_size=N_TOKENS - 30, **SIZES)

    job = run(jobs, run_queue, name, UNEVEN, "auto")

    assert job.error.code == "unsupported_architecture"
    assert "token id 36 ('w31')" in job.error.detail
    assert "ids from 0 to 24" in job.error.detail


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_a_classifier_inside_a_model_of_parts_knows_its_padding(
    jobs, run_queue, models, executor
):
    """It reads the config of its text, and refuses batches when that names no padding."""
    tokenizer = make_tokenizer(eos_token="[EOS]", pad_token="[PAD]")
    text = {**SIZES, "vocab_size": N_TOKENS, "num_key_value_heads": 1, "head_dim": 8,
            "pad_token_id": None}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 24, "image_size": 28, "patch_size": 14}  # fmt: skip
    name = make_model(
        models / "one", "Gemma3", tokenizer, text_config=text, vision_config=vision,
        mm_tokens_per_image=4, image_token_index=5, boi_token_index=6, eoi_token_index=7,
        pad_token_id=None,
    )  # fmt: skip

    calibration = {"batch_size": 4, "n_batches": 2, "executor": executor}
    job_id = jobs.submit(
        model=name,
        dataset={"source": "inline", "rows": UNEVEN},
        calibration=calibration,
        target_modules=["language_model.layers.0.self_attn.q_proj"],
    )
    run_queue()

    job = ended(jobs, job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
