"""Tell MLflow of a plan or an evaluation; needs the extra ``mlflow``."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fimlora_client.blocking.client import Client
from fimlora_client.errors import MissingExtra
from fimlora_client.integrations.facts import Facts, Row, facts_and_files


def log_job(client: Client, job_id: str, *, run_id: str | None = None) -> str:
    """Put what a job has found into a run: parameters, metrics, tags, tables, files.

    All names begin with ``fimlora``. Files and tables, as CSV, are artifacts of the run, the
    digest of the result is a tag.

    Args:
        client: Where the job is.
        job_id: A calibration or an evaluation that has succeeded.
        run_id: The run; the active one if left out, or a new one, which is then ended.

    Returns:
        The id of the run.

    Raises:
        MissingExtra: MLflow is not installed.
    """
    mlflow = _mlflow()
    with facts_and_files(client, job_id) as (facts, files):
        active = mlflow.active_run()
        if run_id is None and active is not None:
            _log(mlflow, facts, files, run_id=active.info.run_id)
            return str(active.info.run_id)
        if run_id is not None:
            _log(mlflow, facts, files, run_id=run_id)
            return run_id
        with mlflow.start_run(run_name=job_id) as own:
            _log(mlflow, facts, files, run_id=own.info.run_id)
            return str(own.info.run_id)


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise MissingExtra(
            "logging to MLflow needs mlflow, which is not installed: "
            "pip install 'fimlora[mlflow]'"
        ) from error
    return mlflow


def _log(mlflow: Any, facts: Facts, files: list[Path], *, run_id: str) -> None:
    to = mlflow.MlflowClient()
    for name, setting in facts.settings.items():
        to.log_param(run_id, f"fimlora.{facts.kind}.{name}", setting)
    for name, value in facts.figures.items():
        to.log_metric(run_id, f"fimlora/{name}", value)
    tags = {"digest": facts.digest, "job": facts.job_id, **facts.sentences}
    for name, text in tags.items():
        to.set_tag(run_id, f"fimlora.{facts.kind}.{name}", text)
    folder = f"fimlora/{facts.kind}"
    for name, (columns, rows) in facts.tables.items():
        to.log_text(run_id, _as_csv(columns, rows), f"{folder}/{name}.csv")
    for file in files:
        to.log_artifact(run_id, str(file), folder)


def _as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
