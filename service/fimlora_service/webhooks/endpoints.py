"""What has become of a job's webhooks."""

from fastapi import APIRouter

from fimlora_contract.webhooks import WebhookTries
from fimlora_jobs.outbox import Outbox
from fimlora_service import errors
from fimlora_service.http.dependencies import JobId, StoreDep, problems
from fimlora_service.http.strict_queries import StrictQueryRoute

router = APIRouter(tags=["jobs"], route_class=StrictQueryRoute)


@router.get(
    "/jobs/{id}/webhooks",
    responses=problems(errors.JobNotFound, errors.ValidationFailed, errors.RedisUnavailable),
)
def job_webhooks(id: JobId, store: StoreDep) -> WebhookTries:
    """Tell who was told of a job's end, when, and with what outcome; addresses stay hidden."""
    store.status_of(id)
    outbox = Outbox(store)
    return WebhookTries(data=outbox.tries(id), waiting=outbox.waiting_for(id))
