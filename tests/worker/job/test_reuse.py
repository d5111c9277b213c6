"""Jobs that use what another job has measured: the same results, without the measuring."""

import shutil

import peft
import pytest

from fimlora_jobs.catalogue import Catalogue, lookup_key
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import LABELLED, Jobs, write_jsonl

# A causal language model has no head of its own to load.
TEXTS = {
    "model": "decoder",
    "dataset": {"source": "inline", "rows": [{"text": f"w{n} w{n % 7} w3"} for n in range(40)]},
}


def stages(jobs: Jobs, job_id: str) -> list[str]:
    progress = [e.progress for e in jobs.store.events(job_id) if e.progress]
    return list(dict.fromkeys(p.stage.value for p in progress))


@pytest.mark.parametrize(
    "request_",
    [
        {"budget": 6},
        {"budget": {"parameters": 2000}, "allocation": {"r_min": 1, "aggregation": "l2"}},
        {"budget": 4, "allocation": {"method": "random", "seed": 5}},
        {"budget": 4, "adapter": {"layout": "C", "scale": 4}},
        {"budget": 4, "adapter": {"weights": True}, **TEXTS},
    ],
    ids=str,
)
def test_another_plan_is_the_one_that_measuring_gives(jobs: Jobs, run_queue, request_):
    """The result has the content address of a job that measured, byte for byte."""
    source = {key: request_[key] for key in TEXTS if key in request_}
    first, fresh = jobs.submit(**source), jobs.submit(**request_)
    again = jobs.submit(**request_, statistics_from=first)
    run_queue()

    assert stages(jobs, again) == ["resolving", "allocating", "writing", "committing"]
    results = [jobs.get(id_).json_field("result")["digest"] for id_ in (fresh, again)]
    assert results[0] == results[1]
    assert jobs.get(again).to_job().statistics_from == first


def spoil(monkeypatch) -> None:
    """Have the installed PEFT make something else of every rank pattern."""
    update = peft.tuners.lora.LoraLayer.update_layer

    def doubled(self, adapter_name, r, *arguments, **options):
        return update(self, adapter_name, 2 * r, *arguments, **options)

    monkeypatch.setattr(peft.tuners.lora.LoraLayer, "update_layer", doubled)


def test_an_adapter_is_proved_again_where_the_model_is(jobs: Jobs, run_queue, monkeypatch):
    """Another PEFT may have been installed since; without the model it is written as before."""
    first = jobs.submit()
    run_queue()
    spoil(monkeypatch)
    models = jobs.data_dir / "models"

    there = jobs.submit(budget=6, statistics_from=first)
    run_queue()
    gone = jobs.submit(budget=5, statistics_from=first)
    models.unlink() if models.is_symlink() else shutil.rmtree(models)
    run_queue()

    refused = jobs.get(there).to_job()
    assert refused.error is not None
    assert "PEFT makes something else of this adapter" in refused.error.detail
    assert jobs.get(gone).to_job().status == "succeeded"


def test_modules_without_a_rank_change_which_names_are_short(jobs: Jobs, run_queue):
    """The names of the targets are chosen on the model, as right after measuring."""
    request = {"budget": {"parameters": 150}, "allocation": {"r_min": 0, "method": "spectral"}}
    first = jobs.submit(allocation={"method": "spectral"})
    fresh = jobs.submit(**request)
    again = jobs.submit(**request, statistics_from=first)
    run_queue()

    results = [jobs.get(id_).to_job().result for id_ in (fresh, again)]
    assert any(module.rank == 0 for module in results[0].rank_map.modules)
    assert results[0].adapter_config == results[1].adapter_config
    assert results[0].digest == results[1].digest


def test_weights_of_a_classifier_load_the_model_but_measure_nothing(jobs: Jobs, run_queue):
    """They have its head in them: the model is read, no batch is run."""
    request = {"budget": 6, "adapter": {"weights": True}}
    first, fresh = jobs.submit(), jobs.submit(**request)
    again = jobs.submit(**request, statistics_from=first)
    run_queue()

    assert "loading" in stages(jobs, again)
    assert "calibrating" not in stages(jobs, again)
    results = [jobs.get(id_).json_field("result")["digest"] for id_ in (fresh, again)]
    assert results[0] == results[1]


def test_a_model_under_another_name_gives_an_adapter_for_that_name(jobs: Jobs, run_queue):
    """Equal content shares statistics; the adapter names what its own job asked for."""
    first = jobs.submit()
    run_queue()
    models = jobs.data_dir / "models"
    folders = models.resolve()
    models.unlink()
    models.mkdir()
    for folder in folders.iterdir():
        (models / folder.name).symlink_to(folder)
    (models / "twin").symlink_to(folders / "tiny")
    (models / ".twin.base_model").write_text("org/twin\n")

    again = jobs.submit(model="twin", budget=6, statistics_from=first)
    run_queue()

    result = jobs.get(again).to_job().result
    assert result is not None
    assert result.adapter_config["base_model_name_or_path"] == "org/twin"
    assert result.rank_map.provenance["base_model"]["name"] == "twin"


@pytest.mark.parametrize("loss", ["artifact", "job"])
def test_statistics_that_are_gone_are_measured_anew(jobs: Jobs, run_queue, loss):
    """The job succeeds all the same, and no longer says that it used another's."""
    first = jobs.submit()
    run_queue()
    if loss == "artifact":
        shutil.rmtree(jobs.data_dir / "artifacts")
        (jobs.data_dir / "artifacts").mkdir()
    else:
        jobs.redis.delete(jobs.store.key("job", first))

    again = jobs.submit(budget=6, statistics_from=first)
    run_queue()

    job = jobs.get(again).to_job()
    assert (job.status, job.statistics_from) == ("succeeded", None)
    assert "calibrating" in stages(jobs, again)


def test_an_infeasible_budget_fails_as_ever(jobs: Jobs, run_queue):
    """The engine's sentence names the interval."""
    first = jobs.submit()
    run_queue()

    again = jobs.submit(budget={"parameters": 3}, statistics_from=first)
    run_queue()

    error = jobs.get(again).to_job().error
    assert error is not None
    assert error.code == "budget_infeasible"


def test_a_succeeded_job_is_found_by_its_inputs(jobs: Jobs, run_queue):
    """By the names of its request, with the budget and without."""
    write_jsonl(jobs.data_dir / "datasets" / "rows.jsonl", LABELLED)
    job_id = jobs.submit(dataset={"source": "local", "name": "rows.jsonl"})
    run_queue()

    catalogue = Catalogue(jobs.store)
    for budget in ({"rank": 4}, None):
        found = catalogue.newest(lookup_key("local:tiny", "local:rows.jsonl", budget))
        assert found is not None
        assert found.id == job_id
    assert catalogue.newest(lookup_key("local:tiny", "local:rows.jsonl", {"rank": 5})) is None


def test_statistics_are_remembered_under_their_digest(jobs: Jobs, run_queue):
    """The next request with that digest finds the job."""
    job_id = jobs.submit()
    jobs.redis.hset(jobs.store.key("job", job_id), "statistics_digest", "sha256:s")
    run_queue()

    found = jobs.store.find_statistics("sha256:s")
    assert found is not None
    assert found.id == job_id
    assert process_for(Settings()).store.find_statistics("sha256:other") is None
