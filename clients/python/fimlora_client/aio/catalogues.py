"""What the service knows by name: datasets, base models and workers; and its cache."""

from fimlora_client.aio.sender import AsyncSender
from fimlora_client.bodies import Rows, upload_of
from fimlora_client.calls import Call, given, route
from fimlora_contract.cache import CacheFigures, EvictionReport
from fimlora_contract.datasets import Dataset, DatasetPage
from fimlora_contract.models import ModelPage
from fimlora_contract.workers import WorkerPage


class AsyncDatasets:
    """Rows to calibrate on."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def upload(self, data: Rows) -> Dataset:
        """Upload a JSONL, CSV or Parquet file, or rows; equal content gives the same dataset.

        ``POST /datasets``
        """
        headers, content = upload_of(data)
        call = Call("POST", "/datasets", headers=headers, content=content)
        return await self._sender.ask(call, Dataset)

    async def list(self, *, tenant: str | None = None) -> DatasetPage:
        """All datasets the service knows; with an admin key, uploads of all tenants, or of one.

        ``GET /datasets``
        """
        return await self._sender.ask(
            Call("GET", "/datasets", params=given(tenant=tenant)), DatasetPage
        )

    async def retrieve(self, dataset_id: str) -> Dataset:
        """One uploaded or registered dataset.

        ``GET /datasets/{id}``
        """
        return await self._sender.ask(Call("GET", route("datasets", dataset_id)), Dataset)

    async def delete(self, dataset_id: str) -> None:
        """Delete an upload that no open job needs; results made from it stay.

        ``DELETE /datasets/{id}``
        """
        await self._sender.do(Call("DELETE", route("datasets", dataset_id)))


class AsyncModels:
    """Base models the operator registered."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def list(self) -> ModelPage:
        """All registered local base models.

        ``GET /models``
        """
        return await self._sender.ask(Call("GET", "/models"), ModelPage)


class AsyncWorkers:
    """The workers that are alive."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def list(self) -> WorkerPage:
        """All living workers: device, memory, and the job each is busy with.

        ``GET /workers``
        """
        return await self._sender.ask(Call("GET", "/workers"), WorkerPage)


class AsyncCache:
    """What earlier calibrations have left."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def figures(self) -> CacheFigures:
        """What is kept, how often it spared a calibration, and what was evicted.

        ``GET /cache``
        """
        return await self._sender.ask(Call("GET", "/cache"), CacheFigures)

    async def evict(self) -> EvictionReport:
        """Delete results beyond the service's limits now.

        ``POST /cache/evict``
        """
        return await self._sender.ask(Call("POST", "/cache/evict"), EvictionReport)
