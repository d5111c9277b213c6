"""Jobs whose methods look at no gradient: what they measure, plan and say."""

import pytest

from fimlora import Statistics
from fimlora.adapter.read import load_plan
from fimlora.statistics.options import Estimator
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs

ACTIVATIONS = "activations alone: no label moves this plan (other rows "
WEIGHTS = "weights alone: no label moves this plan"


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize(
    ("method", "sentence", "n_batches"), [("eva", ACTIVATIONS, 3), ("kappa", WEIGHTS, 0)]
)
def test_a_job_goes_no_further_than_its_method(
    jobs: Jobs, run_queue, method, sentence, n_batches, executor
):
    """No estimator, no null, and a signal that says why; files that load as any others."""
    job = jobs.submit(
        allocation={"method": method},
        calibration={"n_batches": 3, "batch_size": 4, "executor": executor},
    )
    run_queue()

    result = jobs.get(job).to_job().result
    digest = jobs.get(job).json_field("result")["digest"]
    file = process_for(Settings()).artifacts.local(digest, "statistics.safetensors")
    statistics = Statistics.load(file)
    assert result.rank_map.signal.verdict == "none"
    assert result.rank_map.signal.sentence.startswith(sentence)
    assert statistics.estimator is Estimator.NONE
    assert (statistics.n_batches, statistics.null) == (n_batches, None)
    assert not statistics.row_energies
    plan = load_plan(file.parent)
    assert plan.method == method
    assert plan.spent.ranks == 4 * len(plan.modules)


def test_a_plan_of_another_method_says_what_is_missing(jobs: Jobs, run_queue):
    """Statistics without gradients give no plan of fim."""
    first = jobs.submit(allocation={"method": "eva"}, calibration={"n_batches": 2})
    again = jobs.submit(
        allocation={"method": "fim"}, calibration={"n_batches": 2}, statistics_from=first
    )
    run_queue()

    assert jobs.get(again).to_job().error.code
