"""Which weights are in memory when, and what is read again for it."""

import pytest
import torch
import transformers

from fimlora import measure, measure_streamed
from fimlora.measuring.streamed import block_weights as weights_module
from fimlora.measuring.streamed import run
from fimlora.measuring.streamed.buffers import Slot
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.weight_reader import Place, Reader, lay_out
from support.models import make_batch

CONFIG = transformers.LlamaConfig(
    vocab_size=64, hidden_size=24, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=40, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(CONFIG).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("is_large", [True, False])
def test_no_block_is_in_memory_beside_a_large_head(folder, monkeypatch, is_large):
    """All batches leave the last block before the first sees the head; then it is read again."""
    monkeypatch.setattr(weights_module, "_LARGE_END_BYTES", 64 * 24 * 4 + (not is_large))
    opened, weights, beside_head = [], [], []

    class Watched(Checkpoint):
        def __init__(self, path):
            super().__init__(path)
            opened.append(self)

        def read(self, name):
            if name == "lm_head.weight":
                beside_head.extend(slot.device.numel() for slot in weights[0]._slots)
            return super().read(name)

    class Remembered(run.Weights):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            weights.append(self)

    monkeypatch.setattr(run, "Checkpoint", Watched)
    monkeypatch.setattr(run, "Weights", Remembered)
    batches = [make_batch("llama_gqa_lm", [6, 4]), make_batch("llama_gqa_lm", [5, 3, 7])]

    measure_streamed(folder, batches, target_modules=["q_proj"])

    reads = opened[0].reads
    of_blocks = [reads[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)]
    assert [n == 0 for n in beside_head] == [is_large, is_large]
    assert of_blocks == ([2, 2, 2, 2] if is_large else [2, 2, 1, 1])
    assert reads["lm_head.weight"] == reads["model.embed_tokens.weight"] == 1


def test_a_slot_gives_its_memory_back_and_gets_it_again():
    """On the CPU the memory that is read into and the memory computed from are one."""
    slot = Slot.of_size(1000, torch.device("cpu"))

    slot.give_back()
    assert slot.host.numel() == slot.device.numel() == 0
    slot.prepare()

    assert slot.host is slot.device
    assert slot.device.numel() == 1000


def test_places_are_told_as_they_fill(folder):
    """Each of them once, and by then its weight is there: a copy to the device may begin."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    checkpoint = Checkpoint(folder)
    wanted = model.model.layers[1].state_dict(prefix="model.layers.1.")
    places = lay_out(wanted)
    buffer = torch.zeros(max(place.end for place in places.values()), dtype=torch.uint8)
    sources = run.Weights(
        model, checkpoint, {"model.layers.1": model.model.layers[1]}, torch.device("cpu")
    )._sources

    told: list[Place] = []
    for place in Reader(model, checkpoint, sources).fill(places, buffer):
        name = next(name for name, other in places.items() if other is place)
        assert torch.equal(place.view(buffer), wanted[name])
        told.append(place)

    assert sorted(place.start for place in told) == [p.start for p in places.values()]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_equals_resident_on_a_gpu(folder, dtype):
    """Weights that come over a stream of their own, while blocks compute."""
    batches = [make_batch("llama_gqa_lm", [9, 4, 6]), make_batch("llama_gqa_lm", [3, 5])]
    options = {"target_modules": "all-linear", "estimator": "both", "rank": 4}
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.cuda()

    streamed = measure_streamed(folder, batches, dtype=dtype, device="cuda", **options)

    assert streamed.to_bytes() == measure(model.cuda(), batches, **options).to_bytes()
