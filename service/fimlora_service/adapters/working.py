"""What is asked of an adapter, computed in this process: one at a time, without a device.

What is made is kept as an adapter of its own, under its content.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fimlora.adapter.audit import Planned, audit_adapter
from fimlora.adapter.convert import convert_adapter
from fimlora.adapter.truncate import truncate_adapter
from fimlora.plan import Budget
from fimlora_contract.adapters import (
    Adapter,
    Audit,
    Conversion,
    ConversionRequest,
    Truncation,
    TruncationRequest,
)
from fimlora_contract.rank_maps import RankMap
from fimlora_jobs.data_folder import DataFolder
from fimlora_service.adapters.keeping import keep, workshop
from fimlora_service.datasets.owners import Room
from fimlora_service.resolve.adapter_reading import LIMITS, engine_errors, read_head
from fimlora_service.resolve.trained_adapters import FoundAdapter


def truncate(
    request: TruncationRequest,
    found: FoundAdapter,
    data_folder: DataFolder,
    *,
    max_bytes: int,
    room: Room,
) -> Truncation:
    """Cut an adapter, and keep what comes of it.

    Raises:
        ServiceError: The adapter or the request cannot be.
    """
    given = request.budget
    budget = Budget(given.unit, given.value, given.bytes_per_parameter) if given else None
    options = request.model_dump(exclude={"budget"})

    def make(output: Path) -> dict[str, Any]:
        cut = truncate_adapter(
            found.folder, output, budget=budget, limits=LIMITS, max_bytes=max_bytes, **options
        )
        return cut.to_json()

    adapter, report = _derive(make, found, data_folder, room)
    return Truncation(adapter=adapter, **report)


def convert(
    request: ConversionRequest,
    found: FoundAdapter,
    data_folder: DataFolder,
    *,
    max_bytes: int,
    room: Room,
) -> Conversion:
    """Write an adapter in another layout, and keep it.

    Raises:
        ServiceError: The adapter or the request cannot be.
    """

    def make(output: Path) -> dict[str, Any]:
        converted = convert_adapter(
            found.folder, output, layout=request.layout, limits=LIMITS, max_bytes=max_bytes
        )
        return converted.to_json()

    adapter, report = _derive(make, found, data_folder, room)
    return Conversion(adapter=adapter, **report)


def audit(found: FoundAdapter, *, job_id: str | None, rank_map: RankMap | None) -> Audit:
    """Hold what an adapter uses against its ranks, and those of a job's plan.

    Raises:
        ServiceError: The adapter cannot be read.
    """
    with engine_errors():
        plan = _planned(rank_map) if rank_map else None
        report = audit_adapter(found.folder, plan=plan, limits=LIMITS).to_json()
    return Audit(adapter_id=found.id, job_id=job_id, **report)


def _planned(rank_map: RankMap) -> Planned:
    modules = [module for module in rank_map.modules if module.rank]
    power = 0.5 if rank_map.scaling == "rslora" else 1
    return Planned(
        ranks={module.name: module.rank for module in modules},
        scales={module.name: module.alpha / module.rank**power for module in modules},
    )


def _derive(
    make: Callable[[Path], dict[str, Any]],
    found: FoundAdapter,
    data_folder: DataFolder,
    room: Room,
) -> tuple[Adapter, dict[str, Any]]:
    with workshop(data_folder) as work:
        with engine_errors():
            report = make(work / "adapter")
        adapter, _ = keep(
            work / "adapter",
            read_head(work / "adapter"),
            source="derived",
            room=room,
            derived_from=found.id,
        )
    return adapter, report
