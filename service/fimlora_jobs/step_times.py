"""How long a step of training took of late, by model, batch size and length: a rough guide.

The newest figure stands, whatever the machine; testing between steps is part of it.
"""

from fimlora_contract.digests import digest_of
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_jobs.answers import text_of
from fimlora_jobs.store import JobStore

KEPT_S = 90 * 24 * 3600


def note_step_seconds(
    store: JobStore, request: EvaluationRequest, *, model_digest: str, seconds: float
) -> None:
    """Note the time of a step."""
    store.redis.set(_key(store, request, model_digest), f"{seconds:.6f}", ex=KEPT_S)


def step_seconds(
    store: JobStore, request: EvaluationRequest, *, model_digest: str
) -> float | None:
    """Seconds of a step of late; ``None`` where none was timed."""
    stored = store.redis.get(_key(store, request, model_digest))
    return float(text_of(stored)) if stored else None


def _key(store: JobStore, request: EvaluationRequest, model_digest: str) -> str:
    return store.key("step", digest_of([model_digest, request.batch_size, request.max_length]))
