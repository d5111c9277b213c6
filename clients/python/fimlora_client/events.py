"""Read a job's stream of events, over lost connections if need be."""

from fimlora_client.context import Context
from fimlora_client.errors import ConnectionFailed
from fimlora_contract.jobs import JobEvent


class EventReader:
    """Knows where in the stream we are, when it is over and when to give up.

    Attributes:
        last_id: Id of the last event read; a new connection goes on behind it.
        ended: Whether the job has ended, so that nothing follows.
    """

    def __init__(self, context: Context, *, after: str | None = None) -> None:
        self._context = context
        self._silent_tries = 0
        self.last_id = after
        self.ended = False

    @property
    def position(self) -> dict[str, str]:
        """The header that says where to go on."""
        return {"last-event-id": self.last_id} if self.last_id else {}

    def read(self, id_: str, data: str) -> JobEvent:
        """The event that a message of the stream carries."""
        event = JobEvent.model_validate_json(data)
        self.last_id = id_ or event.id
        self.ended = event.type == "status" and event.status.is_final
        self._silent_tries = 0
        return event

    def lost(self, error: ConnectionFailed) -> None:
        """Count a lost connection.

        Raises:
            ConnectionFailed: Nothing was read over too many connections in a row.
        """
        if self._silent_tries >= self._context.policy.max_retries:
            raise error

    def pause(self) -> float:
        """Seconds before the next connection."""
        retry, self._silent_tries = self._silent_tries, self._silent_tries + 1
        return self._context.policy.pause(retry, hint_s=None, random=self._context.random())
