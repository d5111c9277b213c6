"""A model is measured where it fits; the statistics do not say where that was."""

import itertools
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from fimlora import ProgressFile, Settings, measure, measure_folder
from fimlora.errors import InvalidOption, OutOfMemory, UnsupportedModule
from fimlora.measuring.executors import measure_where_it_fits, parse_executor, shortage
from fimlora.measuring.folder import SavedModel, measure_saved
from fimlora.measuring.recording.fisher_exact import FisherExact
from fimlora.measuring.recording.mean_gradient import Signs
from fimlora.measuring.recording.quantities import quantities_for
from fimlora.measuring.recording.quantity import Pass, SeenCall
from fimlora.memory.device import free_bytes
from fimlora.memory.need import SKETCH_WIDTH, MemoryNeed, bytes_recorded, estimate_need
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import align
from fimlora.model.skeleton import build_skeleton
from fimlora.model.weight_reader import read_weights
from fimlora.plan import TargetModule
from fimlora.statistics.options import Executor
from support.models import make_batch, tiny

CPU = torch.device("cpu")
NOTHING = MemoryNeed(0, 0)
TOO_MUCH = MemoryNeed(2**60, 2**20)


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


class Ways:
    """Both ways to measure, the resident one without room and the other with a limit."""

    def __init__(self, *, resident: int = 0, streamed: int = 99) -> None:
        self.limits = {"resident": resident, "streamed": streamed}
        self.tried: list[tuple[str, int]] = []
        model, targets = tiny("bert_classifier")
        self.statistics = measure(
            model, [make_batch("bert_classifier", [3])], target_modules=targets
        )

    def way(self, name: str):
        def run(size: int):
            self.tried.append((name, size))
            if size > self.limits[name]:
                raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB.")
            return self.statistics

        return run

    def measure(self, executor: str = "auto", need: MemoryNeed = NOTHING, batch: int = 8):
        return measure_where_it_fits(
            Executor(executor),
            device=CPU,
            need=need,
            largest_batch=batch,
            resident=self.way("resident"),
            streamed=self.way("streamed"),
        )


def test_a_model_that_fits_is_measured_in_memory():
    """Whole batches at once, and nothing is streamed."""
    ways = Ways(resident=8)

    assert ways.measure() is ways.statistics
    assert ways.tried == [("resident", 8)]


def test_a_model_that_seems_too_large_is_streamed_at_once():
    """Nobody tries to load what cannot fit: a system without limits would kill the process."""
    ways = Ways(resident=8)

    assert ways.measure(need=TOO_MUCH) is ways.statistics
    assert ways.tried == [("streamed", 8)]


def test_running_out_of_memory_turns_to_streaming_with_ever_smaller_micro_batches():
    """What fits only one block at a time, and only two examples of it."""
    ways = Ways(resident=0, streamed=2)

    assert ways.measure() is ways.statistics
    assert ways.tried == [("resident", 8), ("streamed", 8), ("streamed", 4), ("streamed", 2)]


def test_what_fits_neither_way_is_refused_with_both_reasons():
    """Need and limit of the resident model, and what was asked for when it was streamed."""
    ways = Ways(streamed=0)

    with pytest.raises(OutOfMemory) as caught:
        ways.measure(need=TOO_MUCH, batch=1)

    message = str(caught.value)
    assert "weights of 1073741824.0 GiB and about 1.0 MiB for one example, with " in message
    assert "cannot be streamed (one block and one example do not fit; " in message
    assert "another 3.0 GiB was asked for when " in message


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_an_executor_that_was_asked_for_is_not_replaced(executor):
    """Even if it cannot do it and the other could."""
    ways = Ways(resident=0, streamed=0)

    with pytest.raises(OutOfMemory, match=r"another 3\.0 GiB was asked for when"):
        ways.measure(executor, need=TOO_MUCH, batch=1)

    assert ways.tried == [(executor, 1)]


def test_micro_batches_begin_as_large_as_seem_to_fit_on_a_cpu():
    """There, memory is promised to whoever asks, and who uses too much of it is killed."""
    left = free_bytes(CPU)
    assert left is not None
    ways = Ways(resident=999)

    ways.measure(need=MemoryNeed(left // 2, left // 10), batch=64)

    ((_, size),) = ways.tried
    assert 3 <= size <= 5


def test_a_model_that_cannot_be_streamed_and_does_not_fit():
    """The reason why it cannot is part of the answer."""

    def no_blocks(size: int):
        raise UnsupportedModule("no list of blocks")

    with pytest.raises(OutOfMemory, match=r"weights of .* cannot be streamed \(no list of"):
        measure_where_it_fits(
            Executor.AUTO,
            device=CPU,
            need=TOO_MUCH,
            largest_batch=1,
            resident=no_blocks,
            streamed=no_blocks,
        )


def test_an_unknown_executor_is_refused_by_what_there_is():
    """Before anything is read."""
    with pytest.raises(InvalidOption, match="executor='gpu'; allowed are 'auto', 'resident'"):
        parse_executor("gpu")


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm"])
def test_the_need_is_about_the_weights_and_what_autograd_keeps(name, tmp_path):
    """Weights to the byte; activations within 2.5 times, a tiny model's vocabulary included."""
    model, _ = tiny(name)
    model.save_pretrained(tmp_path)
    batch = make_batch(name, [30])
    saved: dict[int, int] = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = model.requires_grad_(False)(  # noqa: F841 - keeps the graph
            inputs_embeds=torch.randn(1, 30, 24, requires_grad=True),
            attention_mask=batch["attention_mask"],
        )

    need = estimate_need(Checkpoint(tmp_path).tensors, itemsize=4, n_tokens=30)

    assert need.weight_bytes == sum(p.numel() * 4 for p in model.parameters())
    assert need.converted_bytes == 0
    assert 0.5 <= need.example_bytes / sum(saved.values()) <= 2.5


def test_experts_that_a_token_does_not_visit_keep_nothing():
    """Of a mixture, as many as it goes through."""
    dense, mixture = (
        estimate_need(
            {
                f"layers.0.mlp.{part}.weight": stored(8, 4)
                for part in ("up", *(f"experts.{n}.up" for n in range(n_experts)))
            },
            itemsize=2,
            n_tokens=10,
            experts_per_token=2,
        )
        for n_experts in (0, 16)
    )

    assert mixture.weight_bytes == 17 * dense.weight_bytes == 17 * 8 * 4 * 2
    assert mixture.converted_bytes == mixture.weight_bytes  # stored in four bytes each
    assert mixture.example_bytes == 3 * dense.example_bytes == 3 * 12 * 10 * 2


@pytest.mark.parametrize(
    "record", [(), "moments", "spectra", "batch_energies", ("spectra", "moments")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spectra_bytes", [0, 2**30])
def test_what_is_recorded_is_foreseen_to_the_byte(record, dtype, spectra_bytes):
    """Sums, what the second pass over a batch adds to them, and the signs of sketches."""
    shapes = [(900, 1100), (1100, 900), (900, 1100), (1500, 900), (8, 4)]
    modules = [
        TargetModule(f"layers.{i}.up", d_in, d_out) for i, (d_in, d_out) in enumerate(shapes)
    ]
    signs, seen = Signs(SKETCH_WIDTH), set()
    settings = Settings(record=record, spectra_bytes=spectra_bytes)
    collected = quantities_for(settings, modules, CPU, signs=signs)
    quantities = [found for found in collected if not isinstance(found, FisherExact)]

    for quantity in quantities:
        for _ in range(2):
            quantity.commit()
            quantity.begin(Pass(torch.ones(2), None, is_whole=False))
            for module in modules:
                x = torch.ones(2, 3, module.d_in, dtype=dtype)
                g = torch.ones(2, 3, module.d_out, dtype=dtype)
                quantity.add(module.name, [SeenCall((x,), g)])

    for staged in itertools.chain(*(quantity.pending_sums() for quantity in quantities)):
        seen |= {staged.total, staged._staged} - {None}
    seen |= set(signs._drawn.values())
    options = {"spectra_bytes": spectra_bytes, "itemsize": dtype.itemsize}
    found = bytes_recorded(modules, record, **options)
    assert found == sum(tensor.numel() * tensor.itemsize for tensor in seen)


def test_what_is_recorded_takes_its_part_of_the_memory():
    """It does not grow with the examples, and is named where it does not fit."""
    need = estimate_need({"a": stored(8, 4)}, itemsize=4, n_tokens=10, recorded_bytes=2**20)
    without = replace(need, recorded_bytes=0)
    free = round(1.05 * (need.weight_bytes + 2**20 + 5.5 * need.example_bytes))

    assert need.examples_within(free, 99999) == 5
    assert without.examples_within(free, 99999) > 5
    assert not need.fits(without.least)
    assert need.fits(need.least)
    found = shortage(replace(need, recorded_bytes=2**60), torch.device("cpu"))
    assert "GiB to record and about" in str(found)


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


def stored(*shape: int):
    from fimlora.model.checkpoint import StoredTensor

    return StoredTensor(Path("x"), 0, torch.float32, shape)


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

    torch.manual_seed(3)
    resident = cls.from_pretrained(tmp_path, config=config, dtype=torch.bfloat16)
    wanted = measure(align(resident), batches, micro_batch_size=2, **options)
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


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("saved_labels", [None, 5, 3], ids=["none", "others", "its own"])
def test_a_head_is_read_or_drawn_as_loading_does(saved_labels, executor, tmp_path):
    """What the checkpoint has for other labels is no use, and drawn like what it lacks."""
    model, targets = tiny("bert_classifier")
    if saved_labels is None:
        model.bert.save_pretrained(tmp_path)
    else:
        model.classifier = torch.nn.Linear(24, saved_labels)
        model.config.num_labels = saved_labels
        model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_labels=3)
    cls = transformers.BertForSequenceClassification
    torch.manual_seed(7)
    resident = cls.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    batches = [make_batch("bert_classifier", [9, 5])]
    options = {"target_modules": targets, "seed": 1}

    names = ["classifier.weight", "classifier.bias"]
    skeleton = build_skeleton(tmp_path, model_class=cls, config=config)
    head = read_weights(skeleton, Checkpoint(tmp_path), names, seed=7)
    found = measure_folder(
        tmp_path,
        batches,
        Settings(**options),
        executor=executor,
        model_class=cls,
        config=config,
        weights_seed=7,
        ignore_mismatched_sizes=True,
    )

    for name in names:
        assert torch.equal(head[name], resident.get_parameter(name))
    assert found.to_bytes() == measure(align(resident), batches, **options).to_bytes()


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
