"""Streamed statistics are the resident ones, and the memory for them is bounded."""

import errno
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from fimlora import Settings, measure, measure_streamed
from fimlora.errors import InvalidCheckpoint, InvalidOption
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.paused_forward import PausedForward
from fimlora.measuring.streamed.run import stream
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import load
from fimlora.model.skeleton import build_skeleton
from support.models import PAD, TINY_MODELS, VOCABULARY, tiny
from support.streaming import ALL, assert_same, batches_for, quiet, save

__all__ = ["quiet"]  # a fixture of every test here

DECODER = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "initializer_range": 0.2,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_streamed_equals_resident(name, tmp_path):
    """Encoders and decoders, tied or not, Conv1D or not, padded, from a sharded folder."""
    model, targets = tiny(name)
    resident = save(model, tmp_path)
    options = {"target_modules": targets, "rank": 4, **ALL}

    streamed = measure_streamed(tmp_path, batches_for(name), Settings(**options))

    assert_same(streamed, measure(resident, batches_for(name), **options))


def stream_from(folder, batches, *, store, targets):
    """Stream with a store and a checkpoint that can be looked at."""
    checkpoint = Checkpoint(folder)
    stream(
        build_skeleton(folder),
        checkpoint,
        batches,
        Settings(target_modules=targets),
        device=torch.device("cpu"),
        store=store,
    )
    return checkpoint


def test_nothing_is_held_of_a_pass_that_is_run_anew(tmp_path):
    """One whose examples turned out mixed leaves the memory for boundaries to the next."""
    model, targets = tiny("deberta_v2_classifier")
    save(model, tmp_path)
    store = BoundaryStore(tmp_path / "spill", None)

    stream_from(tmp_path, batches_for("deberta_v2_classifier"), store=store, targets=targets)

    assert store.held_bytes == 0
    assert store.peak_bytes > 0


def test_micro_batches_boundaries_on_disk_and_upper_targets_only(tmp_path):
    """None of them changes anything; no file and no thread is left."""
    model, _ = tiny("llama_gqa_lm")
    folder, spill = tmp_path / "model", tmp_path / "spill"
    spill.mkdir()
    resident = save(model, folder)
    options = {"target_modules": ["layers.1.mlp.up_proj"], "micro_batch_size": 2}
    batches = batches_for("llama_gqa_lm")
    n_threads = threading.active_count()

    streamed = measure_streamed(
        folder, batches, Settings(**options), max_boundary_bytes=0, boundary_folder=spill
    )

    assert_same(streamed, measure(resident, batches, **options))
    assert streamed.execution is not None
    assert (streamed.execution.executor, streamed.execution.micro_batch_size) == ("streamed", 2)
    assert not list(spill.iterdir())
    assert threading.active_count() <= n_threads  # loading may still end some


@pytest.mark.parametrize("name", ["bert_classifier", "gpt2_lm", "llama_gqa_lm"])
def test_every_tensor_is_read_at_most_twice(name, tmp_path):
    """Whatever the number of batches."""
    model, targets = tiny(name)
    save(model, tmp_path)
    store = BoundaryStore(tmp_path / "spill", None)

    checkpoint = stream_from(tmp_path, batches_for(name) * 3, store=store, targets=targets)

    assert set(checkpoint.reads) == set(checkpoint.tensors)
    assert max(checkpoint.reads.values()) <= 2


def test_a_fresh_head_is_drawn_from_the_seed(tmp_path):
    """Weights that the folder lacks are those that a loaded model gets from it."""
    model, targets = tiny("bert_classifier")
    model.bert.save_pretrained(tmp_path)
    cls = transformers.BertForSequenceClassification
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_labels=3)
    batches = batches_for("bert_classifier")

    streamed = measure_streamed(
        tmp_path,
        batches,
        Settings(target_modules=targets, seed=5),
        model_class=cls,
        config=config,
    )

    skeleton = build_skeleton(tmp_path, model_class=cls, config=config)
    resident = load(skeleton, tmp_path, seed=5).model
    assert_same(streamed, measure(resident, batches, target_modules=targets, seed=5))


def test_an_exception_leaves_nothing_behind(tmp_path):
    """What ``on_batch`` raises comes out; threads, files and random state are as before."""
    model, targets = tiny("llama_gqa_lm")
    folder, spill = tmp_path / "model", tmp_path / "spill"
    spill.mkdir()
    save(model, folder)
    n_threads, state = threading.active_count(), torch.get_rng_state()

    def stop(done: int, expected: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        measure_streamed(
            folder,
            batches_for("llama_gqa_lm"),
            Settings(target_modules=targets, on_batch=stop),
            max_boundary_bytes=0,
            boundary_folder=spill,
        )

    assert threading.active_count() <= n_threads  # loading may still end some
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(spill.iterdir())


def test_dropout_is_refused_with_the_reason(tmp_path):
    """Its random numbers would be others than the resident model's."""
    with pytest.raises(InvalidOption, match=r"train_mode=True cannot be streamed.*resident"):
        measure_streamed(tmp_path, [], Settings(train_mode=True))


def test_more_passes_than_threads_are_refused_with_a_way_out():
    """Each micro-batch is on a thread of its own while it waits for the next block."""
    before = threading.stack_size(2**46)  # no system has room for such a thread
    try:
        with pytest.raises(InvalidOption, match=r"fewer batches.*micro_batch_size"):
            PausedForward(lambda: torch.zeros(1)).advance()
    finally:
        threading.stack_size(before)


def test_a_folder_without_weights_or_with_too_few_is_refused(tmp_path):
    """By the name of what is missing."""
    model, targets = tiny("llama_gqa_lm")
    with pytest.raises(InvalidCheckpoint, match=r"neither model\.safetensors"):
        measure_streamed(tmp_path, [], Settings(target_modules=targets))
    save(model, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_hidden_layers=3)

    with pytest.raises(InvalidCheckpoint, match=r"lacks weights of .*'model\.layers\.2\."):
        measure_streamed(tmp_path, [], Settings(target_modules=targets), config=config)


MEASURE = """
import resource, sys, torch, transformers
from fimlora import Settings, measure, measure_streamed
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
import fimlora.measuring.streamed.run, transformers.models.llama.modeling_llama, fimlora.adapter.live
from pathlib import Path
ids = torch.arange(24).view(2, 12)
batch = {"input_ids": ids, "labels": ids}
kw = dict(target_modules=["q_proj", "down_proj"])
measure_streamed(sys.argv[3], [batch], Settings(**kw))  # what torch loads on first use is no weight
fields = dict(l.split(":") for l in Path("/proc/self/status").read_text().splitlines())
data = int(fields["VmData"].split()[0]) * 1024
limit = data + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
measure_streamed(sys.argv[1], [batch, batch], Settings(**kw))
print("streamed", flush=True)
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1])
measure(model, [batch, batch], **kw)
print("resident")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does")
def test_a_model_several_times_larger_than_the_memory_allowed(tmp_path):
    """Under a limit of a quarter of its weights, where the resident model cannot even load."""
    config = transformers.LlamaConfig(
        **{**DECODER, "hidden_size": 512, "num_hidden_layers": 48, "intermediate_size": 2048}
    )
    folder, small = tmp_path / "large", tmp_path / "small"
    tiny("llama_gqa_lm")[0].save_pretrained(small)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.ones_(
            parameter
        )
    model.save_pretrained(folder)
    n_bytes = sum(p.numel() * 4 for p in model.parameters())
    del model

    environment = {
        "PYTHONPATH": str(Path(__file__).parents[4] / "worker"),
        "OMP_NUM_THREADS": "1",
        # The limit counts addresses: weights go back to the system when they are freed,
        # however the heap happens to lie, so that only what is held counts.
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
        "PATH": "",
        "HOME": tempfile.gettempdir(),
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, str(n_bytes // 4), small],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )

    assert done.stdout.split() == ["streamed"], done.stderr[-2000:]
    assert "allocate memory" in done.stderr  # resident, in the same process
    assert done.returncode != 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
def test_a_full_disk_is_called_that(tmp_path):
    """Whoever runs the calibration tells by the number of the error."""
    (tmp_path / "1.bin").symlink_to("/dev/full")
    store = BoundaryStore(tmp_path, 0)

    with pytest.raises(OSError, match="No space left") as full:
        store.save(torch.ones(8), move=True)

    assert full.value.errno == errno.ENOSPC
