"""Jobs for encoder-decoders: a prompt is read, a completion is written."""

from typing import Any

import peft
import pytest
import torch
import transformers

from fimlora import load_plan
from fimlora_jobs.datasets.columns import TextFields
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.heads import head_task
from support.jobs import Jobs
from support.model_folders import make_family, make_tokenizer
from support.peft_models import lora_parameters, planned, resolved
from support.reference import relative_error
from support.seq2seq import SEQ2SEQ_MODELS

N_TOKENS = 60
ROWS = [
    {
        "prompt": " ".join(f"w{(n * 7 + i) % 50}" for i in range(length)),
        "completion": " ".join(f"w{(n * 3 + i) % 50}" for i in range(1 + n % 6)),
    }
    for n, length in enumerate([25, 9, 7, 3] * 4)
]
FIELDS = TextFields(prompt="prompt", completion="completion")


@pytest.fixture
def models(jobs: Jobs):
    """A T5 and a BART, registered; the other tests' folders are not touched."""
    shared = jobs.data_dir / "models"
    if shared.is_symlink():
        shared.unlink()
        shared.mkdir()
    for name in ("t5", "bart"):
        make_family(shared / name, SEQ2SEQ_MODELS[name](N_TOKENS))
    return shared


def run(jobs: Jobs, run_queue, model: str, rows: Any = ROWS, **request):
    calibration = {"n_batches": 3, "batch_size": 4, "dtype": "float32"}
    job_id = jobs.submit(
        model=model,
        dataset={"source": "inline", "rows": rows},
        calibration=calibration | request.pop("calibration", {}),
        **request,
    )
    run_queue()
    return jobs.get(job_id).to_job()


def folder_of(jobs: Jobs, job: Any):
    assert job.error is None, job.error
    return jobs.data_dir / "artifacts" / job.result.digest.replace(":", "-")


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_energies_are_those_of_the_models_own_loss(jobs, run_queue, models, name, executor):
    """One backward pass for each row by itself, without padding; stock PEFT trains the plan."""
    job = run(
        jobs, run_queue, name, target_modules="all-linear", adapter={"weights": True},
        calibration={"executor": executor, "n_batches": 4, "estimator": "exact"},
    )  # fmt: skip
    adapter = folder_of(jobs, job)

    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(models / name)
    tokenizer = make_tokenizer(pad_token="[PAD]", eos_token="[EOS]")
    wanted: dict[str, float] = {}
    for row in ROWS:
        ids, labels = (torch.tensor([tokenizer(row[column])["input_ids"]]) for column in row)
        end = torch.tensor([[tokenizer.eos_token_id]])
        reference.zero_grad()
        reference(input_ids=ids, labels=torch.cat([labels, end], dim=1)).loss.backward()
        for module in job.result.rank_map.modules:
            gradient = reference.get_submodule(module.name).weight.grad
            energy = float(gradient.square().sum()) / gradient.numel()
            wanted[module.name] = wanted.get(module.name, 0.0) + energy
    scores = {module.name: module.score for module in job.result.rank_map.modules}
    assert len(scores) > 10
    assert (
        relative_error(
            torch.tensor(list(scores.values())) / sum(scores.values()),
            torch.tensor(list(wanted.values())) / sum(wanted.values()),
        )
        <= 1e-5
    )
    plan = load_plan(adapter)
    fresh = transformers.AutoModelForSeq2SeqLM.from_pretrained(models / name)
    loaded = peft.PeftModel.from_pretrained(fresh, adapter, is_trainable=True)
    assert type(loaded) is peft.PeftModelForSeq2SeqLM
    assert resolved(loaded) == planned(plan)
    assert lora_parameters(loaded) == plan.spent.parameters


def test_provenance_says_what_was_predicted(jobs, run_queue, models):
    """Every token of the completions and their ends, the first one too."""
    job = run(jobs, run_queue, "t5", calibration={"n_batches": 4})

    facts = job.result.rank_map.provenance
    n_tokens = sum(len(row["completion"].split()) + 1 for row in ROWS)
    assert (facts["task"], facts["labels_by"]) == ("seq2seq_lm", ["completion"])
    assert (facts["tokens"], facts["labelled_tokens"]) == (n_tokens, n_tokens)
    assert job.result.adapter_config["task_type"] == "SEQ_2_SEQ_LM"


def test_instructions_are_pairs_too(jobs, run_queue, models):
    """The wording is read, the output written."""
    rows = [{"instruction": r["prompt"], "output": r["completion"]} for r in ROWS]

    job = run(jobs, run_queue, "bart", rows)

    assert job.error is None, job.error
    assert job.result.rank_map.provenance["task"] == "seq2seq_lm"


MESSAGES = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"text": "w1 w2"}], "text without a completion"),
        ([{"messages": MESSAGES}], "the rows are chat messages"),
        ([{"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}], "these are chat messages"),
    ],
    ids=["text", "messages", "messages in prompt and completion"],
)
def test_other_rows_are_refused_by_name(jobs, run_queue, models, rows, named):
    """With what is needed instead."""
    job = run(jobs, run_queue, "t5", rows * 8)

    assert job.error is not None
    assert job.error.code in {"unsupported_architecture", "dataset_schema"}
    assert named in job.error.detail
    assert "prompt and completion" in job.error.detail


@pytest.mark.parametrize(
    ("config", "fields", "task"),
    [
        (transformers.BartConfig(), {"text": "t", "label": "l"}, "sequence_classification"),
        (transformers.BartConfig(), {"prompt": "p", "completion": "c"}, "seq2seq_lm"),
        (transformers.T5Config(), {"instruction": "i", "completion": "c"}, "seq2seq_lm"),
        (transformers.MarianConfig(), {"prompt": "p", "completion": "c"}, "seq2seq_lm"),
        (
            transformers.BartConfig(is_decoder=True, is_encoder_decoder=False),
            {"text": "t"},
            "causal_lm",
        ),
        (transformers.LlamaConfig(), {"prompt": "p", "completion": "c"}, "causal_lm"),
        (transformers.BertConfig(), {"text": "t"}, "causal_lm"),
    ],
)
def test_the_task_is_the_models_and_the_rows(config, fields, task):
    """An encoder-decoder reads and writes; its decoder alone, and all others, go on."""
    assert head_task(config, TextFields(**fields)) == task


@pytest.mark.parametrize(
    ("prompt", "completion", "found"),
    [
        ("w1 w2 w3", "w4", ([6, 7, 8], [9, 4])),
        ("w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4 w5 w6", ([6, 7, 8, 9], [6, 7, 8, 4])),
        ("w1", "w2 [EOS]", ([6], [7, 4])),
        ("", "w1", None),
        ("w1", "", None),
    ],
)
def test_a_pair_is_tokenised_apart(prompt, completion, found):
    """Each cut by itself; the completion has one end, and nothing is predicted of nothing."""
    encoder = Encoder(make_tokenizer(eos_token="[EOS]"), FIELDS, 4, None, is_pair=True)

    example = encoder.encode({"prompt": prompt, "completion": completion}, where="row 1")

    ids = example and (example["input_ids"], example["labels"])
    assert ids == found
