"""Run a model's own forward pass, and stop it wherever it calls a block.

Each forward pass is a thread, so that whatever the model does between its blocks (masks, rotary
tables, relative positions, encoder states) happens as written and needs no knowledge of the
architecture. One thread runs at a time: `PausedForward.advance` returns when the pass has stopped.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import InvalidOption


@dataclass(frozen=True)
class PendingCall:
    """A block, and what the model called it with."""

    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Abandoned(BaseException):
    """Unwinds a pass that nobody will advance again."""


class PausedForward(threading.Thread):
    """A forward pass that waits at every block for somebody to say what it returns.

    Attributes:
        call: The call it waits at; ``None`` when it has ended.
        result: What its body returned.
    """

    def __init__(self, body: Callable[[], Tensor]) -> None:
        super().__init__(daemon=True, name="fimlora-forward")
        self.call: PendingCall | None = None
        self.result: Tensor | None = None
        self._body = body
        self._contexts: list[torch.autocast] = []
        self._outputs: Any = None
        self._error: BaseException | None = None
        self._is_abandoned = False
        self._may_run, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        """Run the body; what it raises is for `advance` to raise."""
        try:
            with ExitStack() as stack:
                for context in self._contexts:
                    stack.enter_context(context)
                self.result = self._body()
        except _Abandoned:
            pass
        except BaseException as error:  # for the thread that waits
            self._error = error
        finally:
            self.call = None
            self._has_stopped.release()

    def advance(self, outputs: Any = None) -> None:
        """Go on to the next block, or to the end.

        Args:
            outputs: What the block returns that the pass waits at; not read the first time.

        Raises:
            InvalidOption: There are more passes at once than the system has threads for.
        """  # noqa: DOC502 - starting raises
        self._outputs = outputs
        if self.ident is None:
            self._start()
        else:
            self._may_run.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        # A thread begins without the autocast of the one that starts it.
        self._contexts = _autocasts()
        try:
            self.start()
        except RuntimeError as error:
            raise InvalidOption(
                f"no thread for another pass of the model beside {threading.active_count()}: "
                "calibrate with fewer batches, or with a larger micro_batch_size"
            ) from error

    def stop_at(self, block: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Wait, on the pass's own thread, for what a block returns.

        Args:
            block: The block's name.
            args: What it was called with.
            kwargs: And by name.

        Returns:
            What `advance` was given.

        Raises:
            _Abandoned: The pass is to end here.
        """
        self.call = PendingCall(block, args, kwargs)
        del args, kwargs  # the call alone says how long they live
        self._has_stopped.release()
        self._may_run.acquire()
        if self._is_abandoned:
            raise _Abandoned
        outputs, self._outputs = self._outputs, None
        return outputs

    def abandon(self) -> None:
        """End the pass where it stands; nothing happens if it has ended."""
        self._is_abandoned = True
        if self.ident is not None:
            self._may_run.release()
            self.join()


def _autocasts() -> list[torch.autocast]:
    """What this thread has autocast for."""
    return [
        torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)
        for kind in ("cpu", "cuda")
        if torch.is_autocast_enabled(kind)
    ]


@contextmanager
def casting_as_one_graph() -> Iterator[None]:
    """Let autocast keep no casts in the context.

    It keeps those of leaves that require grad: in a frozen model there is none, but blocks
    that run alone begin with some, and gradients would be added up before they are widened.

    Yields:
        None. It is as before when the context ends.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def stops(blocks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Make passes stop at these modules in the context; other threads run them as ever.

    Args:
        blocks: The modules by name.

    Yields:
        None. The modules are as before when the context ends, also when it raises.
    """

    def stopping(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def stop(*args: Any, **kwargs: Any) -> Any:
            thread = threading.current_thread()
            if isinstance(thread, PausedForward):
                return thread.stop_at(name, args, kwargs)
            return forward(*args, **kwargs)

        return stop

    try:
        for name, block in blocks.items():
            block.forward = stopping(name, block.forward)
        yield
    finally:
        for block in blocks.values():
            block.__dict__.pop("forward", None)
