"""What a model of 405 billion parameters, and a mixture of 671, cost without their weights.

Both are hollow: a config, real headers, files that are all hole. A service in a process of its
own resolves and estimates them from a stand-in hub; the engine, in another one, builds their
tree, finds their targets, reads all headers and plans. Times are the clock's and the processor's
of the process; memory is the most that it had, and how much of that came with the model.

    python benchmarks/scale.py                        # both
    python benchmarks/scale.py --models llama-405b
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in ("clients/python", "service", "worker", "tests")
)
from hollow_checkpoint import (
    DEEPSEEK_V3,
    INDEX,
    LLAMA_405B,
    TOKENIZER,
    blocks_of,
    shards_of,
    write_hollow,
)

MODELS = {"llama-405b": LLAMA_405B, "deepseek-v3": DEEPSEEK_V3}
MIB, GB = 2**20, 1e9
Row = tuple[str, str, str]  # step, what it took, what came of it
Found = TypeVar("Found")


class Meter:
    """What a process takes for each step."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._peak_mib()

    def row(
        self, step: str, call: Callable[[], Found], tell: Callable[[Found], str]
    ) -> tuple[Row, Found]:
        """Time a call."""
        clock, processor = time.perf_counter(), self._processor_s()
        found = call()
        took = time.perf_counter() - clock, self._processor_s() - processor
        peak = self._peak_mib()
        cells = f"{took[0]:.2f} | {took[1]:.2f} | {peak:.0f} | {peak - self._before:.0f}"
        return (step, cells, tell(found)), found

    def _peak_mib(self) -> float:
        lines = Path(f"/proc/{self._pid}/status").read_text(encoding="ascii").splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(kib) * 1024 / MIB

    def _processor_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Hollow(bytes):
    """A file of a hub that is as long as it says and holds nothing behind its head."""

    n_bytes: int

    @classmethod
    def of(cls, head: bytes, n_bytes: int) -> "Hollow":
        """A head and zeros."""
        made = cls(head)
        made.n_bytes = n_bytes
        return made

    def __len__(self) -> int:
        return self.n_bytes

    def __getitem__(self, part: Any) -> Any:
        start, stop, _ = part.indices(self.n_bytes)
        return bytes(self)[start:stop].ljust(stop - start, b"\0")


def published(config: dict[str, Any]) -> dict[str, bytes]:
    """The files of a model as a hub has them."""
    files: dict[str, bytes] = {}
    where: dict[str, str] = {}
    for shard in shards_of(config):
        files[shard.name] = Hollow.of(shard.head, shard.n_bytes)
        where |= dict.fromkeys(shard.tensors, shard.name)
    index = {"metadata": {}, "weight_map": where}
    small = {"config.json": config, "tokenizer.json": TOKENIZER, INDEX: index}
    return files | {name: json.dumps(content).encode() for name, content in small.items()}


@contextmanager
def running_service(room: Path) -> Iterator[tuple[Any, Any]]:
    """A hub in this process and a service in its own."""
    from server import running_server
    from support.hub import running_hub
    from support.valkey import running_valkey

    with running_hub() as hub, running_valkey() as redis_url:
        os.environ["HF_ENDPOINT"] = hub.url
        with running_server(redis_url, room / "data") as client:
            yield hub, client


def service_rows(name: str, room: Path) -> list[Row]:
    """Ask the service twice, the second time by other targets."""
    with running_service(room) as (hub, client):
        pid = _children_of(os.getpid(), "empty_route")
        meter = Meter(pid)
        hub.add(f"scale/{name}", published(MODELS[name]))
        rows: list[Row] = []
        body: dict[str, Any] = {
            "base_model": f"scale/{name}",
            "dataset": {"source": "inline", "rows": [{"text": f"text {n}"} for n in range(64)]},
            "budget": 16,
            "target_modules": "all-linear",
        }
        asked: dict[str, dict[str, Any]] = {
            "resolved and estimated, all-linear": {},
            "again, at parameters": {"budget": {"parameters": 2 * 10**9}},
        }
        for step, change in asked.items():
            row, _ = meter.row(
                f"service: {step}",
                lambda c=change: client.post("/estimate", json=body | c).raise_for_status(),
                lambda answer: _estimated(answer.json()),
            )
            rows.append(row)
        return rows


def _estimated(found: dict[str, Any]) -> str:
    """What an estimate says."""
    return (
        f"{found['model']['parameters'] / GB:.1f} G parameters, "
        f"{found['fetch']['model_bytes'] / GB:.0f} GB to fetch, "
        f"{found['memory']['resident_bytes'] / GB:.0f} GB resident"
    )


def _children_of(pid: int, word: str) -> int:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == pid and word in command:
            return int(entry.name)
    raise SystemExit("the service is gone")


def engine_rows(name: str, folder: Path) -> list[Row]:
    """Build the tree, find targets, read headers and plan; in this process."""
    from fimlora.allocation import allocate
    from fimlora.model.checkpoint import Checkpoint
    from fimlora.model.outline import outline
    from fimlora.model.skeleton import build_skeleton
    from fimlora.model.targets import find_targets
    from fimlora.plan import Budget, TargetModule
    from fimlora.scores import Scores

    rows: list[Row] = []
    meter = Meter(os.getpid())

    def step(what: str, call: Callable[[], Found], tell: Callable[[Found], str]) -> Found:
        row, found = meter.row(f"engine: {what}", call, tell)
        rows.append(row)
        return found

    tree = step("skeleton", lambda: build_skeleton(folder), lambda t: type(t).__name__)
    step(
        "outline of it",
        lambda: outline(tree),
        lambda t: f"{sum(1 for _ in t.modules())} modules",
    )
    targets = step(
        "targets", lambda: find_targets(tree, "all-linear"), lambda t: f"{len(t)} targets"
    )
    step("headers", lambda: Checkpoint(folder), lambda c: f"{len(c.tensors)} tensors")
    shapes = {
        name.removesuffix(".weight"): shape
        for block in blocks_of(MODELS[name])
        for name, shape in block.items()
        if len(shape) == 2 and ".layers." in name
    }
    every = [TargetModule(name, shape[1], shape[0]) for name, shape in shapes.items()]
    for what, modules in (("targets", list(targets)), ("matrices as published", every)):
        rng = random.Random(0)
        scores = Scores(modules, {m.name: rng.lognormvariate(0, 2) for m in modules})
        budget = Budget("parameters", 16 * sum(m.cost for m in modules))
        step(
            f"plan of {len(modules):,} {what}, groups and bounds",
            lambda s=scores, b=budget: allocate(s, b, groups="fused", r_min=4, r_max=64),
            lambda plan: f"ranks {min(plan.ranks.values())} to {max(plan.ranks.values())}",
        )
    return rows


def in_own_process(call: Callable[..., list[Row]], *args: Any) -> list[Row]:
    """What a call gives, in a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, args)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    for name in parser.parse_args().models:
        room = Path(tempfile.mkdtemp(prefix="fimlora-scale-"))
        try:
            total = write_hollow(room / "model", MODELS[name])
            asked = in_own_process(service_rows, name, room)
            built = in_own_process(engine_rows, name, room / "model")
            print(f"\n{name}: {total / GB:.0f} GB of weights, all hole\n")
            print("| step | s | processor s | peak MiB | MiB more | found |")
            print("| --- | --- | --- | --- | --- | --- |")
            for row in (*asked, *built):
                print(f"| {' | '.join(row)} |", flush=True)
        finally:
            shutil.rmtree(room)


if __name__ == "__main__":
    main()
