"""Which weights are in memory when, and what is read again for it."""

import pytest
import torch
import transformers

from fimlora import Settings, measure, measure_streamed
from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.buffers import WeightBuffer
from fimlora.measuring.streamed.run import stream
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.skeleton import build_skeleton
from fimlora.model.weight_reader import WeightSlice, lay_out, open_weights
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
def test_no_block_is_in_memory_beside_a_large_head(folder, is_large):
    """All batches leave the last block before the first sees the head; then it is read again."""
    weights, beside_head = [], []

    class Watched(Checkpoint):
        def read(self, name):
            if name == "lm_head.weight":
                beside_head.extend(buffer.device.numel() for buffer in weights[0].buffers)
            return super().read(name)

    def new_weights(*args, **options):
        large_bytes = 64 * 24 * 4 + (not is_large)
        weights.append(BlockWeights(*args, large_bytes=large_bytes, **options))
        return weights[0]

    checkpoint = Watched(folder)
    batches = [make_batch("llama_gqa_lm", [6, 4]), make_batch("llama_gqa_lm", [5, 3, 7])]

    stream(
        build_skeleton(folder),
        checkpoint,
        batches,
        Settings(target_modules=["q_proj"]),
        device=torch.device("cpu"),
        store=BoundaryStore(folder / "spill", None),
        new_weights=new_weights,
    )

    reads = checkpoint.reads
    of_blocks = [reads[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)]
    assert [n == 0 for n in beside_head] == [is_large, is_large]
    assert of_blocks == ([2, 2, 2, 2] if is_large else [2, 2, 1, 1])
    assert reads["lm_head.weight"] == reads["model.embed_tokens.weight"] == 1


def test_a_buffer_gives_its_memory_back_and_gets_it_again():
    """On the CPU the memory that is read into and the memory computed from are one."""
    buffer = WeightBuffer.of_size(1000, torch.device("cpu"))

    buffer.give_back()
    assert buffer.host.numel() == buffer.device.numel() == 0
    buffer.prepare()

    assert buffer.host is buffer.device
    assert buffer.device.numel() == 1000


def test_slices_are_told_as_they_fill(folder):
    """Each of them once, and by then its weight is there: a copy to the device may begin."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    checkpoint = Checkpoint(folder)
    wanted = model.model.layers[1].state_dict(prefix="model.layers.1.")
    slices = lay_out(wanted)
    buffer = torch.zeros(max(weight.end for weight in slices.values()), dtype=torch.uint8)
    reader = open_weights(model, checkpoint, seed=0, redraws=False)

    told: list[WeightSlice] = []
    for weight in reader.fill(slices, buffer):
        name = next(name for name, other in slices.items() if other is weight)
        assert torch.equal(weight.view(buffer), wanted[name])
        told.append(weight)

    assert sorted(w.start for w in told) == [w.start for w in slices.values()]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_equals_resident_on_a_gpu(folder, dtype):
    """Weights that come over a stream of their own, while blocks compute."""
    batches = [make_batch("llama_gqa_lm", [9, 4, 6]), make_batch("llama_gqa_lm", [3, 5])]
    options = {"target_modules": "all-linear", "estimator": "both", "rank": 4}
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.cuda()

    streamed = measure_streamed(
        folder, batches, Settings(**options), dtype=dtype, device="cuda"
    )

    assert streamed.to_bytes() == measure(model.cuda(), batches, **options).to_bytes()
