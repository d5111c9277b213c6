"""The MCP server driven as an agent's program does it: from a dataset to a verified adapter.

A process of its own on standard input and output, the official SDK's client at the other end,
and the real service with a real worker behind it.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from support.jobs import LABELLED, write_jsonl
from support.model_folders import make_encoder
from support.service_process import running_service
from support.workers import PYTHONPATH, running_worker

pytestmark = pytest.mark.slow
TOOLS = {"look", "estimate", "calibrate", "wait_for_job", "what_if", "fetch_config", "verify"}
WAIT = {"wait_s": 300}


class Agent:
    """One that calls tools, and counts."""

    def __init__(self, client: Client) -> None:
        self.client, self.calls, self.progress = client, 0, []

    async def call(self, tool: str, **arguments: object) -> dict:
        """The structured answer of a tool that does not fail."""
        result = await self._ask(tool, arguments)
        assert not result.is_error, result.content[0].text
        assert json.loads(result.content[0].text) == result.structured_content
        assert len(result.content[0].text) < 10_000
        return result.structured_content

    async def refused(self, tool: str, **arguments: object) -> str:
        """What a tool that fails says."""
        result = await self._ask(tool, arguments)
        assert result.is_error, result.content
        return result.content[0].text

    async def _ask(self, tool, arguments):
        self.calls += 1

        async def heard(progress, total, message):
            self.progress.append(message)

        return await self.client.call_tool(tool, arguments, progress_callback=heard)


@pytest.fixture(scope="module")
def stack(tmp_path_factory, module_valkey):
    """The environment of an agent beside a service with a worker, and its folder."""
    data, work = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("work")
    (data / "models").mkdir()
    make_encoder(data / "models" / "tiny")
    write_jsonl(work / "rows.jsonl", LABELLED)
    with ExitStack() as running:
        http, _ = running.enter_context(running_service(data, module_valkey))
        running.enter_context(running_worker(module_valkey, data, data / "worker.log"))
        ours = ("FIMLORA_", "REDIS_URL")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        yield kept | {"PYTHONPATH": PYTHONPATH, "FIMLORA_URL": str(http.base_url)}, work


@pytest.fixture(scope="module")
def module_valkey():
    from support.valkey import running_valkey

    with running_valkey() as url:
        yield url


def drive(stack, story: Callable[[Agent], Awaitable[None]]) -> Agent:
    """Start the server as an agent's program does, and let a story happen."""
    environment, work = stack
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "fimlora_client.cli", "mcp", "--folder", str(work)],
        env=environment,
    )

    async def run() -> Agent:
        async with Client(stdio_client(command)) as client:
            agent = Agent(client)
            await story(agent)
            return agent

    return asyncio.run(run())


def test_from_a_dataset_to_a_verified_adapter_in_five_calls(stack):
    """Look, estimate, calibrate into a folder, try another budget, verify."""

    async def story(agent):
        known = await agent.call("look", what="models")
        assert known["names"][0]["name"] == "tiny"
        what = {"base_model": "tiny", "dataset": "rows.jsonl", "budget": "4"}
        cost = await agent.call("estimate", **what)
        assert (cost["outcome"], cost["budget"]) == ("measured", "mean rank 4")
        made = await agent.call("calibrate", **what, folder="adapter", weights=True, **WAIT)
        assert made["status"] == "succeeded"
        assert made["plan"]["modules"] > 0
        follows = "no signal" not in made["plan"]["signal"]
        assert follows == ("uniform would do as well" not in made["next_step"])
        assert "adapter/adapter_config.json" in made["files"]
        other = await agent.call("what_if", job_id=made["job_id"], budget="2")
        assert other["plan"]["parameters"] < made["plan"]["parameters"]
        found = await agent.call("verify", adapter="adapter", job_id=made["job_id"])
        assert found["as_planned"], found
        assert found["parameters"] == made["plan"]["parameters"]

    agent = drive(stack, story)

    assert agent.calls <= 5
    assert any("running" in said for said in agent.progress)
    assert len(set(agent.progress)) == len(agent.progress)
    assert (stack[1] / "adapter" / "adapter_model.safetensors").is_file()


def test_an_adapter_that_is_not_as_planned_and_names_that_are_none(stack):
    """Each refusal is a sentence with the tool that helps; a fault is an answer, no refusal."""
    work = stack[1]

    async def story(agent):
        what = {"base_model": "tiny", "dataset": "rows.jsonl", "budget": "3"}
        made = await agent.call("calibrate", **what, weights=True, pin="task:prod", **WAIT)
        again = await agent.call("calibrate", **what, weights=True, **WAIT)
        assert (again["cached"], again["job_id"]) == (True, made["job_id"])
        job = made["job_id"]
        await agent.call("fetch_config", job_id=job, folder="other")
        text = (await agent.call("fetch_config", pin="task:prod"))["text"]
        config = work / "other" / "adapter_config.json"
        assert json.loads(text) == json.loads(config.read_text())
        config.write_text(json.dumps(json.loads(text) | {"alpha_pattern": {}}))
        for plan in ({"job_id": job}, {"pin": "task/prod"}, {"plan": "other"}):
            found = await agent.call("verify", adapter="other", **plan)
            assert not found["as_planned"]
            assert found["faults"][0]["code"] == "alpha_lost"
            assert "alpha_pattern" in found["next_step"]
        waited = await agent.call("wait_for_job", job_id=job)
        assert waited["plan"] == made["plan"]
        bounds = {"budget": "3", "r_min": 1, "r_max": 5}
        tried = await agent.call("what_if", job_id=job, **bounds)
        assert "budget 3, r_min 1, r_max 5: nothing is measured" in tried["next_step"]
        assert (await agent.call("estimate", **what | bounds))["outcome"] == "replanned"
        kept = await agent.call("calibrate", **what | bounds, weights=True, **WAIT)
        assert kept["plan"]["by_type"] == tried["plan"]["by_type"] != made["plan"]["by_type"]
        refusals = {
            "what='models'": ("calibrate", what | {"base_model": "nobody"}),
            "there is no file": ("calibrate", what | {"dataset": "nowhere.jsonl"}),
            "is outside": ("calibrate", what | {"dataset": "../../etc/rows.csv"}),
            "outside_folder": ("fetch_config", {"job_id": job, "folder": "/tmp/elsewhere"}),
            "no budget": ("estimate", what | {"budget": "lots"}),
            "what='jobs'": ("wait_for_job", {"job_id": "job_unknown"}),
            "one of both": ("fetch_config", {}),
            "NAME:TAG": ("fetch_config", {"pin": "task"}),
            "r_min must be greater than": ("calibrate", what | {"r_min": -1}),
            "exactly one": ("verify", {"adapter": "other"}),
            "is no folder": ("verify", {"adapter": "rows.jsonl", "job_id": job}),
            "calibrate: dataset is missing (A .jsonl": ("calibrate", {"base_model": "tiny"}),
            "what is missing": ("look", {}),
            "what must be 'models', 'datasets' or 'jobs', got 'model'": (
                "look",
                {"what": "model"},
            ),
            "budget must be a string, got [8]": ("estimate", what | {"budget": [8]}),
            "columns.text must be a string, got 3": (
                "estimate",
                what | {"columns": {"text": 3}},
            ),
            "wait_s must be less than or equal to 3600, got 7200": (
                "wait_for_job",
                {"job_id": job, "wait_s": 7200},
            ),
            "there is no argument 'bugdet'; there are base_model": (
                "estimate",
                what | {"bugdet": "4"},
            ),
            "did you mean 'budget'?": ("calibrate", {"bugdet": "4"}),
            "there is no tool 'estimates'; there are look": ("estimates", what),
        }
        for said, (tool, arguments) in refusals.items():
            answer = await agent.refused(tool, **arguments)
            assert said in answer
            assert "Traceback" not in answer
            assert "validation error" not in answer
            assert "Input should" not in answer

    drive(stack, story)


def test_tools_say_what_they_take_and_give(stack):
    """Every argument has a description or a closed choice; answers have a schema."""

    async def story(agent):
        listed = (await agent.client.list_tools()).tools
        assert {tool.name for tool in listed} == TOOLS
        for tool in listed:
            assert tool.output_schema
            assert tool.description
            for name, schema in tool.input_schema["properties"].items():
                assert schema.get("description") or name in {"method", "split"}, (tool, name)
        assert "calibrate" in (agent.client.instructions or "")

    drive(stack, story)


def test_without_a_service_and_without_the_extra(tmp_path):
    """The one is a tool's answer, the other a line before anything is served."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FIMLORA_")}
    environment = kept | {"PYTHONPATH": PYTHONPATH, "FIMLORA_URL": "http://127.0.0.1:1"}

    async def story(agent):
        assert "fimlora up" in await agent.refused("look", what="jobs")

    drive((environment, tmp_path), story)
    code = "import sys; sys.modules['mcp'] = None\nfrom fimlora_client.cli import main\nmain()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "mcp"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "pip install 'fimlora[mcp]'" in ran.stderr
    assert "Traceback" not in ran.stderr
