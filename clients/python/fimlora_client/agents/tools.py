"""The tools by which an agent goes from a dataset to a verified configuration."""

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from mcp.server.mcpserver import Context
from pydantic import Field

from fimlora_client.agents import answers
from fimlora_client.agents.files import MOST_CHARS, WorkFolder
from fimlora_client.agents.parameters import (
    BaseModelName,
    BudgetText,
    Columns,
    DatasetName,
    HighestRank,
    JobId,
    LowestRank,
    WaitS,
)
from fimlora_client.agents.progress import ProgressTeller
from fimlora_client.agents.refusals import told
from fimlora_client.aio.client import AsyncClient
from fimlora_client.aio.handle import AsyncJobHandle
from fimlora_client.bodies import build_request
from fimlora_client.errors import InvalidFile, WaitTimeout
from fimlora_client.patterns import Format
from fimlora_client.verification import NotVerifiable, plan_of_job, verified
from fimlora_contract.methods import MethodName
from fimlora_contract.references import expand_dataset

_LISTED = 30


class Tools:
    """What the tools share: the service, and the folder that they work in.

    Args:
        client: The service.
        folder: The folder.
    """

    def __init__(self, client: AsyncClient, folder: WorkFolder) -> None:
        self.client, self.folder = client, folder

    async def look(
        self,
        what: Annotated[
            Literal["models", "datasets", "jobs"], Field(description="What to list.")
        ],
    ) -> answers.Candidates:
        """List what the service knows by name: base models, datasets, or the newest jobs."""
        async with told():
            found = [answers.Candidate(name=n, about=a) for n, a in await self._known(what)]
        more = f" The first {_LISTED} are shown." if len(found) > _LISTED else ""
        step = "calibrate with a base_model, a dataset and a budget."
        return answers.Candidates(names=found[:_LISTED], next_step=step + more)

    async def estimate(
        self,
        base_model: BaseModelName,
        dataset: DatasetName,
        budget: BudgetText = "8",
        method: MethodName = "fim",
        r_min: LowestRank = None,
        r_max: HighestRank = None,
        columns: Columns = None,
        split: str | None = None,
    ) -> answers.Cost:
        """Tell what a calibration would need, and whether its arguments hold; queues nothing."""
        async with told():
            allocation = _allocation(method, r_min, r_max)
            fields = await self._fields(base_model, dataset, budget, allocation, columns, split)
            request = build_request(None, **fields)
            found = await self.client.estimate(request)
            return answers.cost(found, request.budget.model_dump())

    async def calibrate(
        self,
        base_model: BaseModelName,
        dataset: DatasetName,
        ctx: Context[Any, Any],
        budget: BudgetText = "8",
        method: MethodName = "fim",
        r_min: LowestRank = None,
        r_max: HighestRank = None,
        columns: Columns = None,
        split: str | None = None,
        folder: Annotated[
            str | None,
            Field(description="Write adapter_config.json, rank_map.json and so on here."),
        ] = None,
        weights: Annotated[
            bool,
            Field(description="Also write initial weights, which some trainers start from."),
        ] = False,
        pin: Annotated[
            str | None, Field(description="NAME:TAG that the result is to be found by.")
        ] = None,
        wait_s: WaitS = 600,
    ) -> answers.Calibrated:
        """Measure a base model on a dataset, share out the budget, wait, and write the files.

        The one call from a dataset to a configuration. Equal requests are answered from the cache.
        """
        async with told():
            target = self.folder.path(folder) if folder else None
            name_tag = _name_tag(pin)
            allocation = _allocation(method, r_min, r_max)
            fields = await self._fields(base_model, dataset, budget, allocation, columns, split)
            if weights:
                fields["adapter"] = {"weights": True}
            handle = await self.client.calibrate(**fields)
            return await self._finish(handle, ctx, wait_s, target, name_tag)

    async def wait_for_job(
        self,
        job_id: JobId,
        ctx: Context[Any, Any],
        folder: Annotated[str | None, Field(description="Write the files here.")] = None,
        wait_s: WaitS = 600,
    ) -> answers.Calibrated:
        """Wait for a calibration that goes on; a job that has ended is answered at once."""
        async with told():
            target = self.folder.path(folder) if folder else None
            handle = AsyncJobHandle(self.client.jobs, await self.client.jobs.retrieve(job_id))
            return await self._finish(handle, ctx, wait_s, target, None)

    async def what_if(
        self,
        job_id: JobId,
        budget: BudgetText,
        method: MethodName | None = None,
        r_min: LowestRank = None,
        r_max: HighestRank = None,
    ) -> answers.Alternative:
        """Show what another budget would give, from what a job has measured; keeps nothing."""
        given = _allocation(method, r_min, r_max)
        async with told():
            plan = await self.client.jobs.allocate(job_id, budget=budget, allocation=given)
            return answers.alternative(plan, {"budget": budget, **given})

    async def fetch_config(
        self,
        job_id: Annotated[str | None, Field(description="job_...; or give pin.")] = None,
        pin: Annotated[str | None, Field(description="NAME:TAG; or give job_id.")] = None,
        format: Annotated[
            Format,
            Field(description="Whose words the text is in; peft is adapter_config.json."),
        ] = "peft",
        folder: Annotated[
            str | None,
            Field(description="With job_id: write all files of the result here, as they are."),
        ] = None,
    ) -> answers.Fetched:
        """Bring a configuration: all files of a job into a folder, or one pattern as text."""
        async with told():
            if (job_id is None) == (pin is None):
                raise InvalidFile("which configuration? give job_id or pin, one of both")
            if folder and job_id:
                return await self._fetch_files(job_id, self.folder.path(folder))
            if folder:
                raise InvalidFile("folder is for the files of a job: give job_id, not pin")
            return await self._fetch_text(job_id, pin, format)

    async def verify(
        self,
        adapter: Annotated[
            str, Field(description="An adapter's folder, or a Trainer's output folder.")
        ],
        job_id: Annotated[str | None, Field(description="The job that made the plan.")] = None,
        pin: Annotated[str | None, Field(description="NAME:TAG of the plan.")] = None,
        plan: Annotated[
            str | None, Field(description="A folder with rank_map.json; needs no service.")
        ] = None,
        base_model: Annotated[
            str | None,
            Field(description="What the base model is called in training, if a copy was used."),
        ] = None,
    ) -> answers.Verified:
        """Tell whether an adapter is as planned: modules, ranks, scales, parameters, base model."""
        async with told():
            if sum(given is not None for given in (job_id, pin, plan)) != 1:
                raise NotVerifiable("which plan? give exactly one of job_id, pin, plan")
            source = await self._plan(job_id, pin, plan)
            path = self.folder.path(adapter)

            def look() -> dict[str, Any]:
                return verified(path, source, base_model=base_model).to_json()

            return answers.verified(await anyio.to_thread.run_sync(look))

    async def _known(self, what: str) -> list[tuple[str, str]]:
        if what == "models":
            models = (await self.client.models.list()).data
            return [(m.id, m.problem or f"{m.architecture}, {m.size:,} bytes") for m in models]
        if what == "datasets":
            datasets = (await self.client.datasets.list()).data
            return [(d.id, f"{d.format}, columns {', '.join(d.columns[:8])}") for d in datasets]
        jobs = (await self.client.jobs.list(limit=_LISTED)).data
        return [
            (job.id, f"{job.kind}, {job.status}, {job.created_at:%Y-%m-%d %H:%M}")
            for job in jobs
        ]

    async def _fields(
        self,
        base_model: str,
        dataset: str,
        budget: str,
        allocation: dict[str, Any],
        columns: dict[str, str] | None,
        split: str | None,
    ) -> dict[str, Any]:
        """The fields of a request; a file is uploaded once all others are seen to be sound."""
        fields: dict[str, Any] = {
            "base_model": base_model,
            "budget": budget,
            "allocation": allocation,
        }
        file = self.folder.dataset_file(dataset)
        more = {k: v for k, v in {"columns": columns, "split": split}.items() if v is not None}
        build_request(None, **fields, dataset=dataset if file is None else "local:unchecked")
        if file is None:
            return fields | {"dataset": expand_dataset(dataset) | more}
        uploaded = await self.client.datasets.upload(file)
        return fields | {"dataset": {"source": "upload", "id": uploaded.id} | more}

    async def _finish(
        self,
        handle: AsyncJobHandle,
        ctx: Context[Any, Any],
        wait_s: float,
        folder: Path | None,
        name_tag: tuple[str, str] | None,
    ) -> answers.Calibrated:
        try:
            async with ProgressTeller(ctx) as teller:
                result = await handle.wait(timeout=wait_s, on_progress=teller.tell)
        except WaitTimeout:
            return answers.unfinished(await handle.refresh())
        files = await self._download(handle.id, folder) if folder else []
        if name_tag:
            await self.client.rank_patterns.pin(*name_tag, job_id=handle.id)
        pinned = ":".join(name_tag) if name_tag else None
        return answers.calibrated(result, files=files, pinned=pinned)

    async def _download(self, job_id: str, folder: Path) -> list[str]:
        files = await self.client.jobs.download(job_id, folder)
        return sorted(self.folder.shown(path) for path in files.values())

    async def _fetch_files(self, job_id: str, folder: Path) -> answers.Fetched:
        job = await self.client.jobs.retrieve(job_id)
        plan_of_job(job)  # refuses what has none
        files = await self._download(job_id, folder)
        step = "Train with the config in this folder, then verify what was trained against it."
        digest = job.result.digest if job.result else ""
        return answers.Fetched(digest=digest, files=files, next_step=step)

    async def _fetch_text(
        self, job_id: str | None, pin: str | None, format: Format
    ) -> answers.Fetched:
        patterns = self.client.rank_patterns
        if job_id is not None:
            job = await self.client.jobs.retrieve(job_id)
            plan_of_job(job)
            digest = job.result.digest if job.result else ""
            found = await patterns.retrieve(digest, format=format)
        else:
            found = await patterns.pinned(*(_name_tag(pin) or ("", "")), format=format)
        text = found.text or ""
        if len(text) > MOST_CHARS:
            raise InvalidFile(
                f"the configuration has {len(text):,} characters, over the {MOST_CHARS:,} that are "
                "answered as text; give job_id and folder"
            )
        return answers.Fetched(
            digest=found.digest, text=text, next_step="Train with it, then verify."
        )

    async def _plan(self, job_id: str | None, pin: str | None, plan: str | None) -> Any:
        if plan is not None:
            return self.folder.path(plan)
        if job_id is not None:
            return plan_of_job(await self.client.jobs.retrieve(job_id))
        fetched = await self.client.rank_patterns.pinned(*(_name_tag(pin) or ("", "")))
        return fetched.pattern.model_dump(mode="json")


def _allocation(method: str | None, r_min: int | None, r_max: int | None) -> dict[str, Any]:
    """The part of a request that says how the budget is shared out, as far as it is given."""
    asked = {"method": method, "r_min": r_min, "r_max": r_max}
    return {name: value for name, value in asked.items() if value is not None}


def _name_tag(pin: str | None) -> tuple[str, str] | None:
    if pin is None:
        return None
    name, _, tag = pin.replace("/", ":", 1).partition(":")
    if not (name and tag):
        raise InvalidFile(f"pin {pin!r:.100} is not of the form NAME:TAG")
    return name, tag
