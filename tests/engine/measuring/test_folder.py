"""A model in a folder is measured where it fits; the statistics do not say where."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers

from fimlora import ProgressFile, Settings, measure, measure_folder
from fimlora.measuring.folder import SavedModel, measure_saved
from fimlora.memory.need import bytes_recorded, estimate_need
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import align, load
from fimlora.model.skeleton import build_skeleton
from fimlora.statistics.options import Executor
from support.models import make_batch, tiny
from support.streaming import quiet

__all__ = ["quiet"]  # a fixture of every test here


def test_a_model_is_streamed_for_its_spectra(tmp_path):
    """Where it would fit without; only those of one block are in memory at once."""
    model, targets = tiny("llama_gqa_lm")
    model.save_pretrained(tmp_path)
    batch = make_batch("llama_gqa_lm", [5, 3])
    modules = measure(model, [batch], target_modules=targets).modules
    need = estimate_need(Checkpoint(tmp_path).tensors, itemsize=4, n_tokens=5)
    left = need.least + bytes_recorded(modules, "spectra") // 2

    ways = [
        measure_saved(
            SavedModel(tmp_path),
            [batch],
            Settings(target_modules=targets, record=record),
            executor=Executor.AUTO,
            free=lambda _: left,  # a machine with so much
        ).execution
        for record in ((), "spectra")
    ]

    assert [way.executor for way in ways] == [Executor.RESIDENT, Executor.STREAMED]


@pytest.mark.parametrize("executor", ["auto", "resident", "streamed"])
def test_every_executor_gives_the_same_bytes(executor, tmp_path):
    """From one folder without a head, in another dtype than it was saved in."""
    model, targets = tiny("bert_classifier")
    model.bert.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_labels=3)
    cls = transformers.AutoModelForSequenceClassification
    batches = [make_batch("bert_classifier", lengths) for lengths in ([9, 5, 7], [6, 2])]
    options = {"target_modules": targets, "estimator": "both", "seed": 3}

    found = measure_folder(
        tmp_path,
        batches,
        Settings(micro_batch_size=2, **options),
        executor=executor,
        model_class=cls,
        config=config,
        dtype=torch.bfloat16,
    )

    skeleton = build_skeleton(tmp_path, model_class=cls, config=config, dtype=torch.bfloat16)
    resident = load(skeleton, tmp_path, seed=3).model
    wanted = measure(resident, batches, micro_batch_size=2, **options)
    assert found.to_bytes() == wanted.to_bytes()
    assert found.execution is not None
    assert found.execution.executor == {"auto": "resident"}.get(executor, executor)
    assert found.execution.micro_batch_size == 2


def test_sums_of_a_resident_run_do_not_stop_the_streamed_one(tmp_path):
    """They were saved after the first batch; memory runs out in the second, then no more."""
    model, targets = tiny("llama_gqa_lm")
    model.save_pretrained(tmp_path)
    batches = [make_batch("llama_gqa_lm", lengths) for lengths in ([9, 9], [6, 6])]
    calls = []

    def loss(outputs, batch):
        calls.append(len(outputs.logits))
        if calls[1:] in ([2], [2, 1]):
            raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB.")
        return outputs.logits.square().mean(dim=(1, 2))

    file = tmp_path / "sums"
    options = {"target_modules": targets, "loss_fn": loss}
    progress = ProgressFile(file, max_share=math.inf)
    found = measure_folder(tmp_path, batches, Settings(progress_file=progress, **options))

    assert calls == [2, 2, 1, 2, 2]
    assert found.execution is not None
    assert found.execution.executor == "streamed"
    assert found.to_bytes() == measure(align(model), batches, **options).to_bytes()
    assert file.exists()


MEASURE = """
import resource, sys, torch, transformers
from pathlib import Path
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
from fimlora import Settings, measure_folder
import transformers.models.llama.modeling_llama
ids = torch.arange(24).view(2, 12)
batch = {"input_ids": ids, "labels": ids}
kw = dict(target_modules=["q_proj", "down_proj"])
for executor in "resident", "streamed":  # what torch loads on first use is no weight
    measure_folder(sys.argv[2], [batch], Settings(**kw), executor=executor)
fields = dict(l.split(":") for l in Path("/proc/self/status").read_text().splitlines())
limit = int(fields["VmData"].split()[0]) * 1024 + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    measure_folder(sys.argv[1], [batch, batch], Settings(**kw), executor="resident")
except MemoryError as error:
    print(type(error).__name__, error)
found = measure_folder(sys.argv[1], [batch, batch], Settings(**kw))
print(found.execution.executor, found.execution.micro_batch_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does")
def test_a_model_larger_than_the_memory_allowed_is_streamed(tmp_path):
    """Under a limit of half of its weights; resident, it ends with need and limit."""
    options = {
        "vocab_size": 61, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    }  # fmt: skip
    config = transformers.LlamaConfig(**options)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "large")
    n_bytes = sum(p.numel() * 4 for p in model.parameters())
    tiny("llama_gqa_lm")[0].save_pretrained(tmp_path / "small")
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[3] / "worker"),
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**17),  # what is freed is free, however the heap lies
        "PATH": "",
        "HOME": tempfile.gettempdir(),
    }

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURE,
            tmp_path / "large",
            tmp_path / "small",
            str(n_bytes // 2),
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )

    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr[-2000:]
    assert lines[0].startswith("OutOfMemory the model does not fit; stream it, ")
    assert lines[1] == "streamed 2"
