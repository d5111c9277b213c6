"""Jobs that name targets: of a model with parts, by expression, with exclusions."""

from pathlib import Path

import pytest

from fimlora.left_out import EXCLUDED, OUTPUT_HEAD, UNREACHED
from fimlora_contract.jobs import Job
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs
from support.model_folders import make_tokenizer
from support.partly_run import PARTLY_RUN

LANGUAGE = "model.language_model.layers.{}.self_attn.{}_proj"
TEXT = [" ".join(f"w{(n * 7 + i) % 50}" for i in range(2 + n % 11)) for n in range(12)]


@pytest.fixture(scope="session")
def model_folders(model_folders: Path) -> Path:
    """Beside the others, a Gemma 3 with a vision tower."""
    folder = model_folders / "parts"
    PARTLY_RUN["gemma3"].build().save_pretrained(folder)
    make_tokenizer(pad_token="[PAD]", eos_token="[EOS]").save_pretrained(folder)
    return model_folders


def submit(jobs: Jobs, executor: str = "resident", **request) -> str:
    return jobs.submit(
        model="parts",
        dataset={"source": "inline", "rows": [{"text": text} for text in TEXT]},
        calibration={"batch_size": 4, "n_batches": 3, "executor": executor},
        **request,
    )


def ended(jobs: Jobs, run_queue, **request) -> Job:
    job_id = submit(jobs, **request)
    run_queue()
    return jobs.get(job_id).to_job()


@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": [LANGUAGE.format(i, kind) for i in (0, 1) for kind in "qv"]},
        {"target_modules": r".*language_model.*\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*vision_tower\..*"},
    ],
    ids=["names", "expression", "exclusion"],
)
def test_the_language_part_is_targeted(jobs: Jobs, run_queue, choice):
    """Names are those of the loaded tree, which is not the checkpoint's."""
    job = ended(jobs, run_queue, **choice)

    assert job.error is None, job.error
    rank_map = job.result.rank_map
    names = {module.name for module in rank_map.modules}
    assert names == {LANGUAGE.format(i, kind) for i in (0, 1) for kind in "qv"}
    excluded = "exclude_modules" in choice
    assert set(rank_map.not_targeted.values()) == ({EXCLUDED} if excluded else set())
    assert len(rank_map.not_targeted) == (4 if excluded else 0)


def test_all_linear_lists_what_text_does_not_reach_whatever_the_executor(jobs: Jobs, run_queue):
    """The result is one, to the byte."""
    results = [
        ended(jobs, run_queue, executor=executor, target_modules="all-linear").result
        for executor in ("resident", "streamed")
    ]

    assert results[0].digest == results[1].digest
    left_out = dict(results[0].rank_map.not_targeted)
    assert left_out.pop("lm_head") == OUTPUT_HEAD
    assert len(results[0].rank_map.modules) == 2 * 7
    assert set(left_out.values()) == {UNREACHED}
    assert all("vision_tower" in name for name in left_out)


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"target_modules": ["language_model.model.layers.0.self_attn.q_proj"]},
         ["Near names: model.language_model.layers.0.self_attn.q_proj"]),
        ({"target_modules": r".*qq_proj"}, ["matches no full module name"]),
        ({"target_modules": ["q_proj"], "exclude_modules": ["qq_proj"]}, ["exclude_modules entry"]),
        ({"target_modules": ["embed_tokens"]}, ["Embedding", "only Linear"]),
        ({"target_modules": r"(?:(?:[a-z]|[a-z_.\d])+)+(?<!j)"}, ["backtracks without end"]),
    ],
    ids=["checkpoint name", "expression", "exclusion", "embedding", "endless"],
)  # fmt: skip
def test_a_choice_that_the_model_lacks_is_refused_before_it_is_loaded(
    jobs: Jobs, run_queue, executor, choice, words
):
    """And nothing is measured."""
    job = ended(jobs, run_queue, executor=executor, **choice)

    assert job.error is not None
    assert job.error.code in {"validation_failed", "unsupported_architecture"}
    assert all(word in job.error.detail for word in words), job.error.detail
    assert process_for(Settings()).models.n_loads == 0
