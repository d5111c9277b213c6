"""LoRA on an embedding and a head that are one weight: refused on both, and told of one."""

import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from support.jobs import DISTINCT, Jobs
from support.model_folders import make_decoder

TEXTS = {"source": "inline", "rows": [{"text": row["text"]} for row in DISTINCT[:12]]}


def run(jobs: Jobs, run_queue, model: str, targets: list[str], **request):
    job_id = jobs.submit(
        model=model, dataset=TEXTS, target_modules=targets, budget=4,
        calibration={"batch_size": 4, "n_batches": 2}, adapter={"weights": True}, **request,
    )  # fmt: skip
    run_queue()
    return jobs.get(job_id).to_job()


def merged_apart(base, adapter, ids) -> float:
    """How far a merged model's logits are from those of the adapter it is made of."""
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells of ties, too
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        wanted = model(ids).logits
        found = model.merge_and_unload()(ids).logits
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_one_of_both_is_a_target_and_the_plan_says_what_merging_does(jobs, run_queue, target):
    """Merged by stock PEFT it is another model; on a base with a head of its own it is not."""
    tied = make_decoder(jobs.data_dir / "models/tied", tie_word_embeddings=True)
    untied = AutoModelForCausalLM.from_pretrained(tied)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied.config.tie_word_embeddings = False
    untied.save_pretrained(jobs.data_dir / "models/untied")
    for file in tied.glob("*token*"):
        (jobs.data_dir / "models/untied" / file.name).write_bytes(file.read_bytes())

    told, silent = (
        run(jobs, run_queue, name, ["q_proj", target]).result for name in ("tied", "untied")
    )

    names = ["model.embed_tokens", "lm_head"]
    name, other = sorted(names, key=lambda n: not n.endswith(target))
    assert told.rank_map.provenance["tied_targets"] == {name: other}
    [said] = [w.message for w in told.rank_map.warnings if w.code == "tied_weight"]
    assert said.startswith(f"{name} is one weight with {other}: ")
    assert "tied_targets" not in silent.rank_map.provenance
    ids = torch.arange(10)[None]
    folders = [jobs.data_dir / "artifacts" / r.digest.replace(":", "-") for r in (told, silent)]
    load = AutoModelForCausalLM.from_pretrained
    assert merged_apart(load(tied), folders[0], ids) > 0.1
    assert merged_apart(load(jobs.data_dir / "models/untied"), folders[1], ids) < 1e-5
    again = run(jobs, run_queue, "tied", ["q_proj"]).result
    assert "tied_weight" not in {warning.code for warning in again.rank_map.warnings}


@pytest.mark.parametrize(
    ("target", "saved"), [("embed_tokens", "lm_head"), ("lm_head", "embed_tokens")]
)
def test_beside_a_copy_that_trains_whole_nothing_is_tied(jobs, run_queue, target, saved):
    """Stock PEFT merges what the adapter is, so that there is nothing to tell."""
    tied = make_decoder(jobs.data_dir / "models/tied", tie_word_embeddings=True)

    found = run(jobs, run_queue, "tied", ["q_proj", target], modules_to_save=[saved]).result

    assert "tied_targets" not in found.rank_map.provenance
    assert "tied_weight" not in {warning.code for warning in found.rank_map.warnings}
    folder = jobs.data_dir / "artifacts" / found.digest.replace(":", "-")
    base = AutoModelForCausalLM.from_pretrained(tied)
    assert merged_apart(base, folder, torch.arange(10)[None]) < 1e-5


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_both_are_refused_before_anything_is_measured(jobs, run_queue, executor):
    """By both names, also where an expression means them."""
    make_decoder(jobs.data_dir / "models/tied", tie_word_embeddings=True)
    for targets in (["embed_tokens", "lm_head"], ".*(embed_tokens|lm_head|q_proj)"):
        job_id = jobs.submit(
            model="tied", dataset=TEXTS, target_modules=targets, budget=4,
            calibration={"batch_size": 4, "n_batches": 2, "executor": executor},
        )  # fmt: skip
        run_queue()

        job = jobs.get(job_id).to_job()
        assert job.error.code == "unsupported_architecture"
        assert "'model.embed_tokens' and 'lm_head' are one weight" in job.error.detail
        assert "modules_to_save" in job.error.detail
        assert job.progress is None or job.progress.stage != "measuring"
