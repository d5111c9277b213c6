"""The whole task in this process: what a job leaves behind, and how its end is recorded."""

import json

import peft
import pytest
import torch
import transformers
from rq.job import Job

from fimlora import Statistics, load_plan
from fimlora.confidence.signal import signal_of
from fimlora_contract.digests import digest_file
from fimlora_contract.jobs import JobError
from fimlora_jobs.attempts import rq_job_id
from fimlora_worker.job.tasks import run_attempt
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import LABELLED, Jobs, write_jsonl
from support.model_folders import minilm_folder

SENTENCES = [
    ("a wonderful, moving film", 1), ("the plot makes no sense at all", 0),
    ("i laughed from start to end", 1), ("two hours i will never get back", 0),
    ("beautifully shot and well acted", 1), ("flat characters and a dull script", 0),
    ("the best comedy of the year", 1), ("a tedious and noisy mess", 0),
]  # fmt: skip


def test_a_real_model_gets_an_adapter_that_peft_loads(jobs: Jobs, run_queue):
    """From a queued job on MiniLM to a folder that stock PEFT trains, rank by rank."""
    rows = [{"sentence": text, "label": label} for text, label in SENTENCES * 4]
    write_jsonl(jobs.data_dir / "datasets" / "films.jsonl", rows)

    job_id = jobs.submit(
        model="minilm",
        dataset={"source": "local", "name": "films.jsonl"},
        calibration={"n_batches": 4, "batch_size": 8, "max_length": 32},
    )
    run_queue()

    job = jobs.get(job_id).to_job()
    assert job.status == "succeeded"
    assert job.result is not None
    folder = jobs.data_dir / "artifacts" / job.result.digest.replace(":", "-")
    plan = load_plan(folder)
    assert sum(plan.ranks.values()) == 4 * len(plan.modules)
    assert Statistics.load(folder / "statistics.safetensors").n_examples == 32
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        minilm_folder(), num_labels=2
    )
    config = peft.LoraConfig.from_pretrained(folder)
    config.base_model_name_or_path = str(minilm_folder())  # the operator's name, here a path
    model = peft.get_peft_model(base, config)
    for name, rank in plan.ranks.items():
        assert model.base_model.model.get_submodule(name).r["default"] == rank


def test_the_record_lists_what_lies_in_the_artifact_folder(jobs: Jobs, run_queue):
    """Names, digests and sizes are those of the files; polling alone gives the content."""
    job_id = jobs.submit(adapter={"weights": True})
    run_queue()

    result = jobs.get(job_id).to_job().result
    assert result is not None
    folder = jobs.data_dir / "artifacts" / result.digest.replace(":", "-")
    assert {a.name for a in result.artifacts} == {
        "adapter_config.json", "adapter_model.safetensors", "rank_map.json", "rank_map.svg",
        "statistics.safetensors",
    }  # fmt: skip
    for artifact in result.artifacts:
        file = folder / artifact.name
        assert (artifact.digest, artifact.size) == (digest_file(file), file.stat().st_size)
    assert result.adapter_config == json.loads((folder / "adapter_config.json").read_text())
    assert result.rank_map.modules[0].rank >= 1


def test_a_job_says_how_much_of_its_plan_follows_from_the_labels(jobs: Jobs, run_queue):
    """In the first line of what people see, and in its statistics; unless it was not wanted."""
    asked, not_asked = jobs.submit(), jobs.submit(calibration={"signal": False})
    run_queue()

    result, without = (jobs.get(id_).to_job().result for id_ in (asked, not_asked))
    assert result is not None
    assert without is not None
    signal = result.rank_map.signal
    assert signal is not None
    assert signal.verdict in {"task", "weak", "none"}
    assert "labels" in signal.sentence
    assert without.rank_map.signal is None
    folders = (
        jobs.data_dir / "artifacts" / r.digest.replace(":", "-") for r in (result, without)
    )
    mine, theirs = (Statistics.load(folder / "statistics.safetensors") for folder in folders)
    assert signal == type(signal).model_validate(
        signal_of(
            mine, load_plan(jobs.data_dir / "artifacts" / result.digest.replace(":", "-"))
        ).to_json()
    )
    assert not theirs.parts
    assert {m.name: m.rank for m in result.rank_map.modules} == {
        m.name: m.rank for m in without.rank_map.modules
    }


def test_the_second_job_finds_the_model_loaded(jobs: Jobs, run_queue):
    """Another budget on the same model loads nothing, and gives the same scores."""
    first = jobs.submit()
    run_queue()
    process = process_for(Settings())
    loads = process.models.n_loads

    second = jobs.submit(budget=6)
    run_queue()

    assert (loads, process.models.n_loads) == (1, 1)
    scores = [
        {m.name: m.score for m in jobs.get(id_).to_job().result.rank_map.modules}
        for id_ in (first, second)
    ]
    assert scores[0] == scores[1]


def test_results_do_not_depend_on_what_ran_before(jobs: Jobs, run_queue):
    """A new head is drawn from a fixed seed: two processes with different pasts agree."""
    digests = []
    for seed in (1, 2):
        process_for.cache_clear()  # a new process has loaded nothing
        torch.manual_seed(seed)
        job_id = jobs.submit()
        run_queue()
        digests.append(jobs.get(job_id).json_field("result")["digest"])

    assert digests[0] == digests[1]


def test_events_tell_the_stages_in_order(jobs: Jobs, run_queue):
    """A follower sees every stage once, and batches with the time that is left."""
    job_id = jobs.submit()
    run_queue()

    progress = [e.progress for e in jobs.store.events(job_id) if e.progress]
    stages = list(dict.fromkeys(p.stage.value for p in progress))
    assert stages == [
        "resolving", "loading", "fitting_head", "calibrating", "allocating", "writing",
        "committing",
    ]  # fmt: skip
    last = [p for p in progress if p.stage == "calibrating"][-1]
    assert (last.batch, last.n_batches, last.seconds_left) == (6, 6, 0)


def test_an_equal_request_finds_the_result(jobs: Jobs, run_queue):
    """The digest of the request leads to the job that succeeded."""
    job_id = jobs.submit()
    run_queue()

    found = jobs.store.find_result(jobs.get(job_id).fields["request_digest"])
    assert found is not None
    assert found.id == job_id


def test_the_method_spectral_measures_what_it_needs(jobs: Jobs, run_queue):
    """Spectra are recorded for it and for no other method, and may leave modules out."""
    spectral = jobs.submit(allocation={"method": "spectral", "r_min": 0})
    plain = jobs.submit()
    run_queue()

    results = [jobs.get(job_id).to_job().result for job_id in (spectral, plain)]
    folders = [jobs.data_dir / "artifacts" / r.digest.replace(":", "-") for r in results]
    held = [Statistics.load(folder / "statistics.safetensors").spectra for folder in folders]
    plan = load_plan(folders[0])
    assert set(held[0]) == set(plan.ranks)
    assert held[1] == {}
    assert (plan.method, plan.r_min, plan.spent.ranks) == ("spectral", 0, 4 * len(plan.modules))


TEXT = [f"w{n} w{n + 1} w{n + 2}" for n in range(16)]


@pytest.mark.parametrize(
    ("model", "rows", "task_type"),
    [
        ("decoder", [{"text": t} for t in TEXT], "CAUSAL_LM"),
        ("decoder", [{"prompt": t, "completion": " w9"} for t in TEXT], "CAUSAL_LM"),
        ("chat", [{"messages": [{"role": "assistant", "content": t}]} for t in TEXT], "CAUSAL_LM"),
        ("decoder", [{"text": t, "label": len(t) % 2} for t in TEXT], "SEQ_CLS"),
        ("tiny", [{"sentence1": t, "sentence2": t, "label": n / 8} for n, t in enumerate(TEXT)],
         "SEQ_CLS"),
    ],
    ids=["text", "completion", "chat", "decoder classifier", "regression on pairs"],
)  # fmt: skip
def test_every_kind_of_rows_can_be_calibrated(jobs: Jobs, run_queue, model, rows, task_type):
    """Text, completions, chats, classes and numbers, on the model class that fits."""
    job_id = jobs.submit(
        model=model,
        dataset={"source": "inline", "rows": rows},
        target_modules="all-linear",
        calibration={"batch_size": 4},
    )

    assert run_attempt(job_id, 1) == "succeeded"
    result = jobs.get(job_id).to_job().result
    assert result.adapter_config["task_type"] == task_type
    assert result.rank_map.provenance["n_examples"] == 16
    assert all(module.score > 0 for module in result.rank_map.modules)


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        (
            {"dataset": {"source": "inline", "rows": [*LABELLED, {"text": 5, "label": 0}]}},
            "dataset_schema",
            "row 49: column 'text' must be text, it holds int '5'",
        ),
        (
            {"dataset": {"source": "inline", "rows": [{"text": "w1", "label": "a"}]}},
            "dataset_schema",
            "holds the one label 'a'",
        ),
        (
            {"dataset": {"source": "inline", "rows": [{"body": "w1"}]}},
            "dataset_schema",
            "no text column among ['body']",
        ),
        (
            {"budget": {"parameters": 10}},
            "budget_infeasible",
            "feasible",
        ),
        (
            {"target_modules": ["q_projj"]},
            "validation_failed",
            "no module is named 'q_projj'",
        ),
        (
            {"calibration": {"task": "causal_lm"}},
            "unsupported_architecture",
            "bert is no causal language model",
        ),
    ],
    ids=["bad row", "one label", "no text", "budget", "module", "head"],
)
def test_a_job_that_cannot_be_done_says_why(jobs: Jobs, run_queue, request_, code, detail):
    """Code and sentence are on the record; RQ's own job has failed, nothing is left."""
    job_id = jobs.submit(**({"calibration": {"batch_size": 16}} | request_))
    run_queue()

    record = jobs.get(job_id)
    error = JobError(**record.json_field("error"))
    assert (record.status, error.code) == ("failed", code)
    assert detail in error.detail
    rq_job = Job.fetch(rq_job_id(job_id, 1), connection=jobs.redis, serializer="json")
    assert rq_job.get_status() == "failed"
    assert list((jobs.data_dir / "artifacts").iterdir()) == []


def test_a_model_that_changed_after_acceptance_is_not_used(
    jobs: Jobs, run_queue, tmp_path, model_folders
):
    """The job was accepted for one content; another one under the same name is refused."""
    (jobs.data_dir / "models").unlink()
    (jobs.data_dir / "models").mkdir()
    link = jobs.data_dir / "models" / "tiny"
    link.symlink_to(model_folders / "tiny")
    job_id = jobs.submit()
    link.unlink()
    link.symlink_to(model_folders / "decoder")
    run_queue()

    error = jobs.get(job_id).json_field("error")
    assert error["code"] == "model_not_found"
    assert "'tiny' has changed since the job was accepted" in error["detail"]


def test_a_duplicate_execution_leaves_without_writing(jobs: Jobs, run_queue):
    """An attempt that is running, over or overtaken is nobody else's to touch."""
    job_id = jobs.submit()
    jobs.store.start(job_id, 1, worker="another")
    run_queue()
    assert jobs.get(job_id).status == "running"

    jobs.store.requeue(job_id, 1)

    assert run_attempt(job_id, 1) == "refused"
    assert jobs.get(job_id).attempt == 2
    assert run_attempt("job_unknown", 1) == "refused"


def test_a_job_popped_after_its_deadline_fails_with_timeout(jobs: Jobs, run_queue):
    """The worker looks at the clock before it does anything; one with time left succeeds."""
    late, early = jobs.submit(deadline_s=60), jobs.submit(deadline_s=600)
    jobs.redis.hincrby(f"fimlora:job:{late}", "deadline_at", -60_000)
    run_queue()

    record = jobs.get(late)
    assert (record.status, record.json_field("error")["code"]) == ("failed", "timeout")
    assert "deadline_s" in record.json_field("error")["detail"]
    assert jobs.get(early).status == "succeeded"


@pytest.mark.parametrize(
    ("rows", "options", "labels_by"),
    [
        ([{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "w9"}]}
          for t in TEXT], {}, ["prefix"]),
        ([{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "w9"}]}
          for t in TEXT], {"chat_labels": "all"}, ["all"]),
        ([{"prompt": t, "completion": " w9"} for t in TEXT], {}, ["completion"]),
        ([{"text": t} for t in TEXT], {}, ["all"]),
    ],
    ids=["chat", "all of a chat", "completion", "text"],
)  # fmt: skip
def test_provenance_says_what_carries_a_label(jobs: Jobs, run_queue, rows, options, labels_by):
    """How many tokens of how many, and how it was decided."""
    job_id = jobs.submit(
        model="chat",
        dataset={"source": "inline", "rows": rows},
        target_modules="all-linear",
        calibration={"batch_size": 4, "n_batches": 4, **options},
    )

    assert run_attempt(job_id, 1) == "succeeded"
    facts = jobs.get(job_id).to_job().result.rank_map.provenance
    n_tokens = facts["tokens"]
    expected = {"prefix": 2 * 16, "completion": 2 * 16, "all": n_tokens - 16}[labels_by[0]]
    assert facts["labels_by"] == labels_by
    assert facts["labelled_tokens"] == expected < n_tokens
    assert facts.get("chat_labels") == options.get(
        "chat_labels", "assistant" if "messages" in rows[0] else None
    )
