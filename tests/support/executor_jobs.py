"""Jobs that ask for an executor, and what became of them."""

from fimlora_contract.jobs import Job
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs

TEXT = [f"w{n} w{n + 1} w{n + 2}" for n in range(16)]
ROWS = {
    "text": [{"text": t} for t in TEXT],
    "labels": [{"text": t, "label": n % 3} for n, t in enumerate(TEXT)],
    "numbers": [{"text": t, "label": n / 8} for n, t in enumerate(TEXT)],
}


def submit(jobs: Jobs, model: str, rows: str, executor: str, **request) -> str:
    calibration = {"batch_size": 4, "n_batches": 3, "executor": executor}
    return jobs.submit(
        model=model,
        dataset={"source": "inline", "rows": ROWS[rows]},
        calibration=calibration,
        **request,
    )


def ended(jobs: Jobs, job_id: str) -> Job:
    return jobs.get(job_id).to_job()


def n_loads() -> int:
    return process_for(Settings()).models.n_loads
