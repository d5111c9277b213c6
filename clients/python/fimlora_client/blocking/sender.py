# Made from aio/sender.py by `make docs`; edit that file.
"""Sends calls, again where that may help; every resource of a client speaks through it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from fimlora_client.blocking.transport import Events, Transport
from fimlora_client.calls import Answer, Call, raise_for_problem, read_answer
from fimlora_client.context import Context
from fimlora_client.errors import ConnectionFailed
from fimlora_client.retries import is_in_flight, is_rate_limited, is_retryable

T = TypeVar("T", bound=BaseModel)


@dataclass(slots=True)
class Sender:
    """A connection with its retry policy.

    Attributes:
        transport: Does the HTTP.
        pause: Lets seconds pass.
        context: Retry policy, clock and randomness.
    """

    transport: Transport
    pause: Callable[[float], object]
    context: Context

    def send(self, call: Call) -> Answer:
        """Send a call until its answer is final or the retries are used up.

        The call is the same object every time, so it carries the same ``Idempotency-Key``.

        Raises:
            ConnectionFailed: The service was not reached in the last try.
        """
        context, policy = self.context, self.context.policy
        retry, in_flight_s = 0, 0.0
        while retry < (0 if call.is_final else policy.max_retries):
            hint, is_waited_for, answer = None, False, None
            try:
                answer = self._send_once(call)
            except ConnectionFailed:
                pass
            else:
                if not is_retryable(answer) or (call.is_poll and is_rate_limited(answer)):
                    return answer
                hint = context.hint(answer)
                is_waited_for = is_in_flight(answer) and in_flight_s < policy.max_in_flight_s
            pause = policy.pause(retry, hint_s=hint, random=context.random())
            if is_waited_for:
                in_flight_s += pause
            else:
                retry += 1
            if answer is not None:
                context.on_pause(answer, pause)
            self.pause(pause)
        return self._send_once(call)

    def ask(self, call: Call, model: type[T]) -> T:
        """Send a call and read its answer."""
        return read_answer(self.send(call), model)

    def do(self, call: Call) -> Answer:
        """Send a call whose answer is no model: nothing, text, or a file that is saved."""
        answer = self.send(call)
        raise_for_problem(answer)
        return answer

    def listen(self, call: Call) -> AbstractContextManager[Events]:
        """Open a stream of events as pairs of id and data."""
        return self.transport.listen(call)

    def _send_once(self, call: Call) -> Answer:
        answer = self.transport.send(call)
        self.context.on_answer(call, answer)
        return answer
