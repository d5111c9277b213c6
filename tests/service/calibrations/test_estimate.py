"""POST /estimate."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fimlora.memory.need import bytes_recorded, estimate_need
from fimlora.model.checkpoint import Checkpoint
from fimlora.plan import TargetModule
from fimlora.statistics.options import Passes
from fimlora_contract.calibrations import Calibration
from fimlora_service.app import create_app
from fimlora_service.calibrations.checkpoint_sizes import measure_checkpoint
from fimlora_service.calibrations.memory import demand_of
from support.hub import Hub
from support.presence import CPU, GIB, GPU, enter_worker
from support.service import CONFIG, TOKENIZER, WEIGHTS, make_model

TARGETS = ["query", "value"]
N_PARAMETERS = 2 * 3 * (16 * 16 + 16)


@pytest.fixture
def app(settings, hub: Hub):
    """The app with a hub it can reach."""
    return create_app(settings.model_copy(update={"hub_endpoint": hub.url}))


def head_of(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file as far as its header goes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header)
    return len(text).to_bytes(8, "little") + text.encode()


def write_hollow(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Weights that take no room on the disk: the service reads no further than their header."""
    head = head_of(shapes)
    file.write_bytes(head)
    os.truncate(file, len(head) + sum(4 * math.prod(shape) for shape in shapes.values()))


def everything(redis_client, data_dir) -> tuple[list[bytes], list[str]]:
    """All that the service keeps."""
    files = sorted(str(path) for path in data_dir.rglob("*"))
    return sorted(redis_client.keys()), files


def test_a_request_is_estimated_and_nothing_is_written(http, body, redis_client, data_dir):
    """The same resolved content as of a job, without the job."""
    before = everything(redis_client, data_dir)

    answer = http.post("/estimate", json=body)

    estimate = answer.json()
    assert answer.status_code == 200, answer.text
    assert everything(redis_client, data_dir) == before
    assert (estimate["object"], estimate["outcome"]) == ("estimate", "measured")
    assert estimate["job_id"] is None
    assert estimate["fetch"] == {"model_bytes": 0, "dataset_bytes": 0}
    assert estimate["queue"] == {"ahead": 0, "workers": 0, "wait_s": None}
    assert estimate["memory"]["note"] is None  # nothing but text
    job = http.post("/calibrate", json=body).json()
    assert estimate["resolved"] == job["resolved"]
    assert (
        redis_client.hget(f"fimlora:job:{job['id']}", "request_digest").decode()
        == (estimate["request_digest"])
    )


def test_what_earlier_jobs_have_found_is_told(http, body, job_id, succeed, data_dir, store):
    """A result, only the statistics, or neither; and who has them."""
    result = succeed(job_id)
    cached = http.post("/estimate", json=body).json()
    other = http.post("/estimate", json=body | {"budget": 4}).json()
    open_id = http.post("/calibrate", json=body | {"budget": 5}).json()["id"]
    shared = http.post("/estimate", json=body | {"budget": 5}).json()
    late = http.post("/estimate", json=body | {"budget": 5, "deadline_s": 60}).json()
    store.request_cancel(open_id)
    over = http.post("/estimate", json=body | {"budget": 5}).json()
    folder = data_dir / "artifacts" / result["digest"].replace(":", "-")
    (folder / "statistics.safetensors").write_bytes(b"x")
    store.remember_statistics(store.get(job_id).fields["statistics_digest"], job_id)
    replanned = http.post("/estimate", json=body | {"budget": 4}).json()
    forced = http.post("/estimate", json=body | {"force": True}).json()

    assert (cached["outcome"], cached["job_id"]) == ("cached", job_id)
    assert (other["outcome"], other["job_id"]) == ("measured", None)
    assert (shared["outcome"], shared["job_id"]) == ("shared", open_id)
    assert late["outcome"] == over["outcome"] == "measured"
    assert (replanned["outcome"], replanned["job_id"]) == ("replanned", job_id)
    assert (forced["outcome"], forced["job_id"]) == ("measured", None)
    assert (cached["queue"]["ahead"], other["queue"]["ahead"]) == (0, 1)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"budget": 0}, 422),
        ({"base_model": "local:none"}, 424),
        ({"dataset": "upload:ds_" + "0" * 32}, 404),
        ({"target_modules": ["querry"]}, 422),
        ({"budget": {"parameters": 1}, "target_modules": TARGETS}, 422),
        ({"budget": {"fraction": 0.01}, "target_modules": TARGETS}, 422),
        ({"dataset": {"source": "inline", "rows": [{"a": 1}]}}, 422),
        ({"unknown": 1}, 422),
    ],
    ids=str,
)
def test_what_calibrate_refuses_is_refused_alike(http, body, change, status):
    """Same status, same sentence."""
    estimated = http.post("/estimate", json=body | change)
    calibrated = http.post("/calibrate", json=body | change)

    assert estimated.status_code == calibrated.status_code == status
    assert estimated.json()["detail"] == calibrated.json()["detail"]


@pytest.mark.parametrize(
    ("budget", "allocation", "lowest", "highest", "feasible"),
    [
        (8, {}, 1, 16, True),
        (8, {"r_min": 2, "r_max": 12}, 2, 12, True),
        (8, {"method": "fisher-layers"}, 0.5, 8, True),
        (8, {"method": "fisher-layers", "n_layers": 2}, 1, 16, True),
        ({"rank": 4}, {"r_min": 2, "multiple_of": 4}, 4, 16, True),
        ({"rank": 4}, {"r_min": 3, "rank_menu": [2, 4, 12, 20]}, 4, 12, True),
        (7, {"r_min": 6, "multiple_of": 4}, 8, 16, False),
        (10, {"r_min": 1, "r_max": 10, "multiple_of": 4}, 4, 8, False),
        (7, {"r_min": 5, "r_max": 7, "multiple_of": 4}, 8, 4, False),
        ({"parameters": 9000}, {"rank_menu": [8, 16], "max_lora_rank": 4}, 1024, 0, False),
        ({"rank": 4}, {"max_lora_rank": 8}, 1, 8, True),
        ({"parameters": 1000}, {}, 4 * 32, 4 * 16 * 32, True),
        ({"parameters": 300}, {"r_min": 2}, 2 * 4 * 32, 4 * 16 * 32, True),
        ({"bytes": 1000, "bytes_per_parameter": 2}, {}, 2 * 4 * 32, 2 * 4 * 16 * 32, True),
        ({"fraction": 0.1}, {}, 4 * 32 / N_PARAMETERS, 4 * 16 * 32 / N_PARAMETERS, True),
    ],
    ids=str,
)
def test_the_budget_interval_is_in_the_unit_of_the_request(
    http, body, budget, allocation, lowest, highest, feasible
):
    """From the shapes of the target modules, which are four maps of 16 by 16."""
    request = body | {"budget": budget, "allocation": allocation, "target_modules": TARGETS}

    model = http.post("/estimate", json=request).json()["model"]

    assert (model["parameters"], model["target_modules"]) == (N_PARAMETERS, 4)
    assert model["budget"]["lowest"] == pytest.approx(lowest)
    assert model["budget"]["highest"] == pytest.approx(highest)
    assert model["budget"]["is_feasible"] is feasible


@pytest.mark.parametrize(
    ("targets", "config", "n_targets"),
    [
        ("all-linear", {}, 6),
        (["layer.0.output.dense"], {}, 1),
        (None, {}, None),
        (None, {"model_type": "bert"}, 4),
        (None, {"model_type": "t5"}, None),
        (["classifier"], {}, None),
        (TARGETS, {"num_experts": 4}, None),
    ],
    ids=str,
)
def test_targets_are_counted_where_the_files_tell(
    http, body, data_dir, targets, config, n_targets
):
    """Null where only the loaded model knows."""
    folder = make_model(data_dir / "models" / "other", config=CONFIG | config)
    shapes = {
        "embeddings.word_embeddings.weight": (50, 16),
        "model.embed_tokens.weight": (50, 16),
    }
    weights = dict(WEIGHTS) | shapes
    save_file(
        {n: np.zeros(s, np.float32) for n, s in weights.items()}, folder / "model.safetensors"
    )
    request = body | {"base_model": "local:other", "target_modules": targets}

    model = http.post("/estimate", json=request).json()["model"]

    assert model["target_modules"] == n_targets
    assert (model["budget"] is None) is (n_targets is None)
    assert ("worker checks the budget" in model.get("note", "")) is (n_targets is None)


@pytest.mark.parametrize("route", ["/estimate", "/calibrate"])
def test_a_budget_below_the_default_targets_is_refused_at_once(http, body, data_dir, route):
    """Four modules of 16 x 16 cost 128 at rank 1; exactly that is met."""
    make_model(data_dir / "models" / "default", config=CONFIG | {"model_type": "bert"})
    request = body | {"base_model": "local:default", "target_modules": None}

    refused = http.post(route, json=request | {"budget": {"parameters": 127}})
    met = http.post(route, json=request | {"budget": {"parameters": 128}})

    assert (refused.status_code, refused.json()["code"]) == (422, "budget_infeasible")
    assert "the lowest ranks of the modules need 128" in refused.json()["detail"]
    assert met.is_success


def test_memory_is_compared_with_every_worker(http, body, data_dir, store):
    """By the rules in `memory`, worked out here by hand."""
    big = {
        "hidden_size": 4096, "max_position_embeddings": 500_000, "model_type": "llama",
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    make_model(data_dir / "models" / "big", config=big)
    enter_worker(store, name="cpu", hardware=CPU)
    enter_worker(store, name="gpu", hardware=GPU)
    enter_worker(store, name="unknown", hardware=GPU.model_copy(update={"memory_bytes": None}))
    tokens = 100_000
    calibration = {"batch_size": 3, "max_length": tokens, "n_batches": 2}
    request = body | {"base_model": "local:big", "calibration": calibration}

    memory = http.post("/estimate", json=request).json()["memory"]

    features = 3 * (16 + 16)  # of three maps in each of two blocks
    assert memory["dtype"] == "bfloat16"
    assert memory["resident_bytes"] == round(1.05 * (N_PARAMETERS + 2 * features * tokens) * 2)
    assert memory["streamed_bytes"] == (N_PARAMETERS + features * tokens) * 2 + GIB
    assert memory["boundary_bytes"] == 6 * 3 * tokens * 4096 * 2
    fits = {w["name"]: (w["resident"], w["streamed"]) for w in memory["workers"]}
    assert fits == {"cpu": (True, True), "gpu": (True, True), "unknown": (None, None)}


@pytest.mark.parametrize("passes", Passes)
def test_the_service_and_the_engine_agree_on_what_fits(tmp_path, passes):
    """Whoever is told that a model fits is not surprised by the worker."""
    shapes = {
        "model.embed_tokens.weight": (100, 8),
        "model.layers.0.q_proj.weight": (8, 8),
        "model.layers.0.norm.weight": (8,),
        "model.layers.0.experts.gate": (4, 8, 16),
        "model.layers.1.experts.0.up.weight": (16, 8),
        "model.layers.1.experts.3.up.weight": (16, 8),
        "lm_head.weight": (100, 8),
    }
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    engine = estimate_need(
        Checkpoint(tmp_path).tensors,
        itemsize=2,
        n_tokens=64,
        experts_per_token=2,
        passes=passes,
    )

    ours = demand_of(
        measure_checkpoint(shapes, experts_per_token=2),
        {},
        Calibration(max_length=64),
        dtype="bfloat16",
        passes=passes,
    )

    assert (ours.weights, ours.resident) == (engine.weight_bytes, engine.least)


@pytest.mark.parametrize("side", [64, 4096], ids=["whole_gradients", "sketches"])
@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], None], ids=["named", "by_default"])
@pytest.mark.parametrize("signal", [True, False], ids=["signal", "no_signal"])
@pytest.mark.parametrize(
    ("asks", "record"),
    [
        ({"allocation": {"method": "spectral"}}, "spectra"),
        ({"adapter": {"init": "lora-one"}}, "gradient_factors"),
        ({"adapter": {"init": "gora"}}, "projected_gradient"),
        ({"adapter": {"init": "eva"}}, "input_components"),
    ],
    ids=["spectral", "lora-one", "gora", "eva"],
)
def test_what_is_recorded_is_counted_as_the_engine_counts_it(
    http, body, data_dir, side, targets, signal, asks, record
):
    """On top of the same model's need, with null and halves or without; streamed, of one block."""
    sides = {"q_proj": (side, side), "up_proj": (4 * side, side)}
    folder = make_model(data_dir / "models" / "wide", config=CONFIG | {"hidden_size": side})
    shapes = {"embed_tokens.weight": (100, side)}
    for n in range(20):
        shapes |= {f"layers.{n}.{kind}.weight": shape for kind, shape in sides.items()}
    write_hollow(folder / "model.safetensors", shapes)
    asked = body | {"base_model": "local:wide", "target_modules": targets}
    asked |= {"calibration": {"signal": signal}}
    more = asked | asks

    without, memory = (
        http.post("/estimate", json=b).raise_for_status().json()["memory"]
        for b in (asked, more)
    )

    block = [TargetModule(kind, d_in, d_out) for kind, (d_out, d_in) in sides.items()]
    parts = {"null": signal, "halves": signal}
    n_bytes = 0 if side == 4096 else 2**30
    whole = bytes_recorded(20 * block, record, **parts)
    one = bytes_recorded(block, record, spectra_bytes=n_bytes, **parts)
    resident = memory["resident_bytes"] - without["resident_bytes"]
    assert resident == pytest.approx(1.05 * whole, abs=1)
    assert memory["streamed_bytes"] - without["streamed_bytes"] == one
    assert memory["boundary_bytes"] == without["boundary_bytes"]


def test_a_model_too_large_for_a_worker_is_streamed_there(http, body, data_dir, store):
    """Blocks fit where the whole does not; with less, neither."""
    shapes = {f"layers.{n}.q.weight": (2048, 2048) for n in range(64)}
    folder = make_model(data_dir / "models" / "deep")
    write_hollow(folder / "model.safetensors", shapes)
    for name, size in (("small", GIB // 2), ("middle", GIB + 2**26), ("large", 2 * GIB)):
        enter_worker(store, name=name, hardware=CPU.model_copy(update={"memory_bytes": size}))

    memory = http.post("/estimate", json=body | {"base_model": "local:deep"}).json()["memory"]

    fits = {w["name"]: (w["resident"], w["streamed"]) for w in memory["workers"]}
    assert fits["small"] == (False, False)
    assert fits["large"] == (True, True)
    assert fits["middle"] == (False, True)


def test_workers_without_a_gpu_calculate_in_float32(http, body, store):
    """Unless the request says otherwise."""
    enter_worker(store, hardware=CPU)

    auto = http.post("/estimate", json=body).json()["memory"]
    asked = http.post("/estimate", json=body | {"calibration": {"dtype": "float16"}}).json()

    assert (auto["dtype"], asked["memory"]["dtype"]) == ("float32", "float16")


def test_of_the_hub_only_heads_and_sizes_are_read(http, body, hub: Hub, tmp_path, data_dir):
    """What a worker would fetch: wanted files only, and not those it has fetched before."""
    model = hub.add("org/model", make_model(tmp_path / "m"))
    model.files |= {"pytorch_model.bin": b"x" * 999, "onnx/model.onnx": b"x" * 999}
    rows = json.dumps({"text": "a"}).encode()
    hub.add("org/data", {"train.jsonl": rows, "README.md": "# data"}, kind="dataset")
    request = body | {"base_model": "org/model", "dataset": "org/data"}

    first = http.post("/estimate", json=request).json()
    ours = data_dir / "hub" / "models" / "models--org--model" / "snapshots" / model.commit
    ours.mkdir(parents=True)
    (ours / "model.safetensors").write_bytes(b"fetched")
    second = http.post("/estimate", json=request).json()

    sizes = {name: len(data) for name, data in model.files.items()}
    assert first["resolved"]["base_model"]["revision"] == model.commit
    assert first["fetch"] == {
        "model_bytes": sizes["config.json"]
        + sizes["model.safetensors"]
        + len(json.dumps(TOKENIZER)),
        "dataset_bytes": len(rows),
    }
    assert second["fetch"]["model_bytes"] == sizes["config.json"] + len(json.dumps(TOKENIZER))
    assert first["model"]["parameters"] == N_PARAMETERS
    assert {*hub.whole} == {"config.json", "tokenizer.json"}


def test_every_shard_counts(http, body, hub: Hub, tmp_path):
    """A model in several files is the sum of them; an adapter beside it is not part of it."""
    files: dict[str, Any] = {"model.safetensors.index.json": "{}"}
    for number in range(3):
        shard = tmp_path / "shard"
        save_file({f"layers.{number}.q.weight": np.zeros((16, 16), np.float32)}, shard)
        files[f"model-{number}.safetensors"] = shard.read_bytes()
    files["adapter_model.safetensors"] = shard.read_bytes()
    hub.add(
        "org/sharded",
        {"config.json": json.dumps(CONFIG), "tokenizer.json": json.dumps(TOKENIZER)} | files,
    )

    model = http.post("/estimate", json=body | {"base_model": "org/sharded"}).json()["model"]

    assert model["parameters"] == 3 * 16 * 16


@pytest.mark.parametrize("side", [-1, 1 << 41, 10**300])
def test_a_head_that_states_nonsense_is_refused(http, body, hub: Hub, tmp_path, side):
    """422, not an answer with absurd numbers."""
    file = head_of({"a.weight": (side,)})
    config = json.dumps(CONFIG)
    hub.add(
        "org/odd",
        {
            "config.json": config,
            "tokenizer.json": json.dumps(TOKENIZER),
            "model.safetensors": file,
        },
    )

    problem = http.post("/estimate", json=body | {"base_model": "org/odd"}).json()

    assert problem["code"] == "unsafe_weights"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_size": 10**4000, "vocab_size": 5}, "hidden_size=a number of"),
        ({"hidden_size": "wide", "intermediate_size": None}, "hidden_size='wide'"),
        ({"text_config": {"hidden_size": 2**70}}, f"hidden_size={2**70}"),
    ],
    ids=["huge", "strange types", "nested"],
)
def test_an_odd_configuration_is_refused(http, body, data_dir, config, named):
    """As POST /calibrate refuses it; nothing is worked out from nonsense."""
    make_model(data_dir / "models" / "odd", config=CONFIG | config)

    answer = http.post("/estimate", json=body | {"base_model": "local:odd"})

    assert (answer.status_code, named in answer.json()["detail"]) == (422, True), answer.text


def test_the_wait_is_guessed_from_jobs_before(http, body, store, redis_client):
    """None for an idle worker; else so many jobs at the mean time, over all workers."""

    def wait() -> float | None:
        return http.post("/estimate", json=body).json()["queue"]["wait_s"]

    first, second = enter_worker(store, name="w1"), enter_worker(store, name="w2")
    idle = wait()
    first.begin("job_0-1")
    second.begin("job_1-1")
    untold = wait()
    redis_client.hset("fimlora:tallies", mapping={"seconds": "300.0", "measured": "5"})
    for budget in (2, 3, 4):
        http.post("/calibrate", json=body | {"budget": budget})

    assert (idle, untold) == (0.0, None)
    assert wait() == pytest.approx(4 * 60 / 2)


def test_a_run_that_goes_forward_only_needs_less(http, body):
    """Features of a few maps, the inputs of one block for all examples, and no null."""
    few = {"calibration": {"n_batches": 2, "batch_size": 4, "max_length": 64}}

    back, forward, none = (
        http.post("/estimate", json=body | few | {"allocation": {"method": method}})
        .raise_for_status()
        .json()["memory"]
        for method in ("fim", "cka-layers", "kappa")
    )

    assert back["boundary_bytes"] > forward["boundary_bytes"] > none["boundary_bytes"] == 0
    assert back["resident_bytes"] > none["resident_bytes"]
