"""What goes wrong, as a tool's answer: the code, the sentence, and which tool helps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.mcpserver.exceptions import ToolError

from fimlora_client.errors import ClientError

# In place of advice that speaks of routes and commands.
_NEXT_STEPS = {
    "model_not_found": "look with what='models' lists registered models, `fimlora models add NAME "
    "FOLDER` registers one; on the hub a model is namespace/name.",
    "dataset_not_found": "look with what='datasets' lists datasets; a .jsonl, .json, .csv or .parquet "
    "file below the folder of the tools is uploaded.",
    "job_not_found": "look with what='jobs' lists jobs.",
    "job_gone": "calibrate again with the same arguments.",
    "job_not_finished": "wait_for_job with this job_id.",
    "job_failed": "Read the sentence; calibrate again once its cause is gone.",
    "wait_timeout": "wait_for_job with this job_id; the job goes on.",
    "no_pattern": "calibrate makes a result, and names it with pin.",
    "result_expired": "calibrate again with the same arguments.",
    "connection_failed": "Start the service with `fimlora up`, or set FIMLORA_URL to where it runs.",
    "adapter_invalid": "Give verify an adapter's folder or a Trainer's output folder, and one plan.",
}


@asynccontextmanager
async def told() -> AsyncIterator[None]:
    """Turns the client's exceptions into a tool's error.

    Raises:
        ToolError: Something went wrong; the model reads its text.
    """
    try:
        yield
    except ClientError as error:
        step = _NEXT_STEPS.get(error.code, error.next_step)
        text = f"{error.code}: {error}".rstrip(". ")
        raise ToolError(f"{text}. Next: {step}" if step else f"{text}.") from error
