"""What has become of a job's webhooks."""

from fastapi import APIRouter

from fimlora_contract.webhooks import WebhookTries
from fimlora_jobs.outbox import Outbox
from fimlora_service import errors
from fimlora_service.http.dependencies import StoreDep, problems
from fimlora_service.keys.access import JobId
from fimlora_service.keys.principal import READS
from fimlora_service.keys.routes import ScopedRoute

router = APIRouter(tags=["jobs"], route_class=ScopedRoute)


@router.get(
    "/jobs/{id}/webhooks",
    dependencies=[READS],
    responses=problems(errors.JobNotFound, errors.ValidationFailed, errors.RedisUnavailable),
)
def job_webhooks(id: JobId, store: StoreDep) -> WebhookTries:
    """Tell who was told of a job's end, when, and with what outcome; addresses stay hidden."""
    store.status_of(id)
    outbox = Outbox(store)
    return WebhookTries(data=outbox.tries(id), waiting=outbox.waiting_for(id))
