"""Tell Weights & Biases of a plan or an evaluation; needs the extra ``wandb``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fimlora_client.blocking.client import Client
from fimlora_client.errors import MissingExtra
from fimlora_client.integrations.facts import Facts, facts_and_files

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


def log_job(client: Client, job_id: str, *, run: "Run | None" = None) -> str:
    """Put what a job has found into a run: settings, figures, tables, picture, files.

    Settings go into ``config`` under ``fimlora``, figures into the summary, so that no step of
    a training is taken. The files are an artifact with the digest of the result in its metadata.

    Args:
        client: Where the job is.
        job_id: A calibration or an evaluation that has succeeded.
        run: The run; the one that is open if left out, or a new one, which is then finished.

    Returns:
        The id of the run.

    Raises:
        MissingExtra: W&B is not installed.
    """
    wandb = _wandb()
    with facts_and_files(client, job_id) as (facts, files):
        run = run or wandb.run
        if run is not None:
            _log(wandb, run, facts, files)
            return str(run.id)
        with wandb.init(name=job_id, job_type=f"fimlora-{facts.kind}") as own:
            _log(wandb, own, facts, files)
            return str(own.id)


def log_to_run(client: Client, job_id: str, run_id: str | None) -> str:
    """`log_job` into the run with an id, which is opened for it, or into a new one."""
    if run_id is None:
        return log_job(client, job_id)
    with _wandb().init(id=run_id, resume="must") as run:
        return log_job(client, job_id, run=run)


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra(
            "logging to W&B needs wandb, which is not installed: pip install 'fimlora[wandb]'"
        ) from error
    return wandb


def _log(wandb: Any, run: Any, facts: Facts, files: list[Path]) -> None:
    known = dict(run.config.get("fimlora") or {})  # a plan and its evaluation go into one run
    said = {facts.kind: {**facts.settings, "digest": facts.digest}}
    run.config.update({"fimlora": known | said}, allow_val_change=True)
    run.summary.update(
        {
            f"fimlora/{name}": value
            for name, value in {**facts.figures, **facts.sentences}.items()
        }
    )
    shown: dict[str, Any] = {
        f"fimlora/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        for name, (columns, rows) in facts.tables.items()
    }
    pictures = [file for file in files if file.suffix == ".svg"]
    shown |= {f"fimlora/{p.stem}": wandb.Html(p.read_text(), inject=False) for p in pictures}
    run.log(shown, commit=False)  # with whatever is logged next, or at the end
    artifact = wandb.Artifact(
        f"fimlora-{facts.kind}-{facts.digest.removeprefix('sha256:')[:12]}",
        type=f"fimlora-{facts.kind}",
        metadata={"digest": facts.digest, "job": facts.job_id},
    )
    for file in files:
        artifact.add_file(str(file), policy="immutable")
    run.log_artifact(artifact)
