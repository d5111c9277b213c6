"""A real service on a real Valkey, with one empty route to compare with; for benchmarks."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in ("clients/python", "service", "worker", "tests")
)
import httpx2
import numpy as np
from redis import Redis

from fimlora import Statistics, TargetModule
from fimlora.statistics.options import Estimator
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.store import JobStore
from support.results import make_result
from support.service import ROWS

KINDS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 14336),
    "mlp.up_proj": (4096, 14336),
    "mlp.down_proj": (14336, 4096),
}


def llama_statistics(n_layers: int, *, seed: int) -> Statistics:
    """Made-up statistics of a model with Llama-3-8B's shapes, 7 modules a layer."""
    random = np.random.default_rng(seed)
    modules = tuple(
        TargetModule(f"model.layers.{layer}.{kind}", *shape)
        for layer in range(n_layers)
        for kind, shape in KINDS.items()
    )
    return Statistics(
        modules=modules,
        estimator=Estimator.EXACT,
        n_examples=64,
        n_batches=8,
        base_parameters=8_030_261_248,
        loss="causal_lm",
        dtype="bfloat16",
        scale=2,
        train_mode=False,
        rank=None,
        seed=None,
        row_energies={m.name: random.lognormal(0, 2, m.d_out) for m in modules},
        example_energies={m.name: random.lognormal(0, 2, 64) for m in modules},
        squared_gradients={},
    )


@contextmanager
def running_server(redis_url: str, data_dir: Path) -> Iterator[httpx2.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "REDIS_URL": redis_url,
        "FIMLORA_DATA_DIR": str(data_dir),
        "FIMLORA_MAX_OPEN_JOBS": "0",
    }
    command = [sys.executable, Path(__file__).with_name("empty_route.py"), str(port)]
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while True:
                try:
                    client.get("/healthz")
                    break
                except httpx2.ConnectError:
                    time.sleep(0.01)
            print(
                f"start of the server to its first answer: {time.monotonic() - began:.2f} s\n"
            )
            yield client
    finally:
        process.terminate()
        process.wait()


def succeeded_job(
    client: httpx2.Client, redis_url: str, data_dir: Path, layers: int, *, seed: int = 0
) -> str:
    """A job with a stored result, another one for every seed; its worker is played here."""
    body = {
        "base_model": "tiny", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8,
        "calibration": {"seed": seed}, "force": True,
    }  # fmt: skip
    job_id = client.post("/calibrate", json=body).raise_for_status().json()["id"]
    store = JobStore(Redis.from_url(redis_url))
    store.start(job_id, 1, worker="benchmark")
    result = make_result(data_dir, statistics=llama_statistics(layers, seed=seed))
    store.succeed(job_id, 1, result)
    Catalogue(store).file(store.get(job_id))
    return str(job_id)
