"""What decides a result, and what decides the statistics: the keys that equal requests share."""

from collections.abc import Mapping, Set
from typing import Any

from fimlora.adapter.initial.registry import init_records
from fimlora.methods.registry import needs_null, passes_needed, records_needed
from fimlora.statistics.options import Passes
from fimlora_contract import __version__
from fimlora_contract.digests import digest_of
from fimlora_contract.requests import CalibrationRequest

# Raise it with every change after which an equal request gives other statistics, another plan or
# other files: results of earlier code are then measured anew instead of served.
MEASUREMENT = 7
MEASURED = frozenset({"target_modules", "exclude_modules", "calibration"})
PLANNED = frozenset({"allocation", "adapter", "budget"})
# Where the weights are while they are measured changes no number, nor who measures which batches.
NEITHER = frozenset({"executor", "shards"})
# By content instead of its name.
BY_CONTENT = frozenset({"adapter"})
# What says when to stop measuring decides nothing where the number of batches is given.
ROUNDS = frozenset({"tolerance", "max_batches"})


def request_digest(
    request: CalibrationRequest,
    *,
    model_digest: str,
    dataset: Mapping[str, Any],
    retain: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    tenant: str = "",
    called: str | None = None,
    settings: Set[str] = MEASURED | PLANNED,
    measurement: int = MEASUREMENT,
) -> str:
    """Digest of everything that decides a result, and of nothing else.

    With ``settings=MEASURED``, of everything that decides the statistics. The executor and
    the shards are in neither: a request that is equal but for them finds the same result.
    """
    is_auto = request.calibration.n_batches == "auto"
    if is_auto:  # the plan decides how much is measured
        settings = settings | {"allocation", "budget"}
    unread = {"calibration": set(BY_CONTENT | (NEITHER if is_auto else NEITHER | ROUNDS))}
    record = records_needed(*request.methods_measured) | init_records(request.adapter.initial)
    null = needs_null(*request.methods_measured) and not request.calibration.signal
    passes = passes_needed(*request.methods_measured)
    return digest_of(
        {"engine": __version__, "measurement": measurement}
        | {"base_model": model_digest, "dataset": _content(dataset)}
        | ({"retain": _content(retain)} if retain else {})
        | ({"measured_at": adapter["digest"]} if adapter else {})
        | request.model_dump(mode="json", include=set(settings), exclude=unread)
        | _experts(request)
        | _saved(request)
        # What a method or an init needs besides is measured for it only, but for the null of the signal.
        | ({"record": sorted(record)} if record else {})
        | ({"null": True} if null else {})
        # A run that goes forward only, or not at all, leaves out what all others record.
        | ({"passes": passes} if passes is not Passes.BACKWARD else {})
        # What is written in the adapter, if one is written.
        | ({"called": called} if called is not None and _writes(request, settings) else {})
        # What only some may read is found only by who may read it.
        | ({"tenant": tenant} if tenant else {})
    )


def _experts(request: CalibrationRequest) -> dict[str, Any]:
    """Fused experts that are targets, where any are."""
    asked = request.target_parameters
    return {} if asked is None else {"target_parameters": asked}


def _saved(request: CalibrationRequest) -> dict[str, Any]:
    """Modules that train whole, where any do: they are in the config, and are no targets."""
    asked = request.modules_to_save
    return {} if asked is None else {"modules_to_save": asked}


def _writes(request: CalibrationRequest, settings: Set[str]) -> bool:
    return request.writes_adapter and "adapter" in settings


def _content(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dataset decides what is measured, whatever it goes by."""
    return {"digest": dataset["digest"], "fields": dataset["fields"]}
