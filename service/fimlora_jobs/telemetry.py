"""Traces for OpenTelemetry, where an operator wants them; else nothing of it is even imported.

The trace context of a request lies in its job's record, and that of each attempt beside it: an
attempt is a trace of its own, linked to the request that it is for and to the attempts before. What
other workers do for it is in its trace.
"""

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fimlora_contract import __version__
from fimlora_contract.environment import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

UNKNOWN, FLUSH_MS = "unknown_service", 2000
NEEDED = (
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter.otlp.proto.http",
)
MISSING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and what sends them is not installed: "
    "pip install 'fimlora[telemetry]', or unset it"
)


def check_installed() -> None:
    """Refuse where traces are wanted and cannot be made.

    Raises:
        SettingsError: Something of the extra is not installed.
    """
    try:
        found = [find_spec(name) for name in NEEDED]
    except ModuleNotFoundError:
        found = [None]
    if None in found:
        raise SettingsError(MISSING)


def open_provider(process: str) -> "TracerProvider":
    """What makes spans and sends them where ``OTEL_*`` says; the library reads these itself."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get("service.name", UNKNOWN)).startswith(UNKNOWN):
        resource = resource.merge(Resource({"service.name": f"fimlora-{process}"}))
    resource = Resource({"service.version": __version__}).merge(resource)
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def current_traceparent() -> str:
    """The trace context of what is being done, as W3C has it; empty where nothing is traced."""
    from opentelemetry.trace import get_current_span  # of the API, which FastAPI brings

    return _traceparent(get_current_span())


class Tracing:
    """Makes a trace of each attempt, or nothing.

    Args:
        provider: What makes spans; ``None`` for nothing.
        is_flushed: Whether the process ends right after an attempt, so that what it has of the
            trace must be sent before.
    """

    def __init__(
        self, provider: "TracerProvider | None" = None, *, is_flushed: bool = False
    ) -> None:
        self._provider = provider
        self._is_flushed = is_flushed

    def attempt(self, **attributes: Any) -> "AbstractContextManager[AttemptTrace]":
        """The trace of one attempt, which ends with the block and has the error that ended it."""
        return self._traced("attempt", "", attributes)

    def hand(
        self, traceparent: str, **attributes: Any
    ) -> "AbstractContextManager[AttemptTrace]":
        """The part that a hand has in the trace of the attempt that leads.

        Args:
            traceparent: That of the attempt; what is none begins a trace of its own.
            **attributes: What is known of the hand.

        Returns:
            It, as `attempt` gives that of an attempt.
        """
        return self._traced("hand", traceparent, attributes)

    @contextmanager
    def _traced(
        self, name: str, parent: str, attributes: Mapping[str, Any]
    ) -> "Iterator[AttemptTrace]":
        if self._provider is None:
            yield AttemptTrace()
            return
        tracer = self._provider.get_tracer("fimlora", __version__)
        try:
            with tracer.start_as_current_span(
                name, context=_extracted(parent), attributes=_named(attributes)
            ) as span:
                trace = AttemptTrace(span, tracer)
                try:
                    yield trace
                finally:
                    trace.leave_stage()
        finally:
            if self._is_flushed:
                self._provider.force_flush(FLUSH_MS)


class AttemptTrace:
    """The trace of one attempt: a span of its own, and one in it per stage."""

    def __init__(self, span: "Span | None" = None, tracer: Any = None) -> None:
        self._span = span
        self._tracer = tracer
        self._stage: Any = None

    @property
    def traceparent(self) -> str:
        """What a later attempt is linked to this one by; empty for nothing."""
        return _traceparent(self._span) if self._span else ""

    @property
    def id(self) -> str:
        """Id of the trace; empty for nothing."""
        return self.traceparent.split("-")[1] if self._span else ""

    def link(self, traceparents: Iterable[str]) -> None:
        """Link it to what it follows from."""
        if self._span is None:
            return
        for context in filter(None, map(_context_of, traceparents)):
            self._span.add_link(context)

    def note(self, **attributes: Any) -> None:
        """Say something of the attempt."""
        if self._span:
            self._span.set_attributes(_named(attributes))

    def enter_stage(self, stage: str) -> None:
        """End the stage before, and begin this one."""
        self.leave_stage()
        if self._span:
            self._stage = self._tracer.start_span(stage)

    def leave_stage(self) -> None:
        """End the stage that the attempt is in."""
        if self._stage:
            self._stage.end()
        self._stage = None

    def event(self, name: str, **attributes: Any) -> None:
        """Note that something has happened in this stage."""
        if self._stage:
            self._stage.add_event(name, _named(attributes))


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"fimlora.{name}": value for name, value in attributes.items() if value is not None}


def _traceparent(span: "Span") -> str:
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _extracted(traceparent: str) -> Any:
    """The context that a record names; an empty one for anything else."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _context_of(traceparent: str) -> Any:
    """What a record says of another span; ``None`` for anything else."""
    from opentelemetry.trace import get_current_span

    found = get_current_span(_extracted(traceparent))
    return found.get_span_context() if found.get_span_context().is_valid else None
