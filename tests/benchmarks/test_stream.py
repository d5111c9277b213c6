"""The two sides of the streaming benchmark measure the same model, and see what was read."""

import pytest
import torch
import transformers
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.stream_runs import Resident, Streamed, make_batches, with_blocks

from fimlora.model.checkpoint import Checkpoint

TINY = transformers.Qwen2Config(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    dtype="bfloat16",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "model", TINY, lambda _: None)
    return tmp_path / "model"


def test_both_sides_give_the_same_statistics_of_the_first_blocks(folder, capsys):
    """The checkpoint has as many blocks as were asked for, and loads as any other does."""
    batches = make_batches(64, 2, 2, 6)

    resident, _ = Resident(folder, 2, CPU).run(batches, 2)
    streamed, facts = Streamed(folder, CPU, cold=True).run(batches, 2)

    assert streamed.to_bytes() == resident.to_bytes()
    assert len(resident.modules) == 2 * 7
    assert "4 of 4" in capsys.readouterr().err
    used = [t for n, t in Checkpoint(folder).tensors.items() if "layers.2" not in n]
    n_bytes = sum(t.n_bytes for t in used)
    assert n_bytes <= facts["bytes_read"] <= 2 * n_bytes
    assert facts["waited_s"] > 0
    assert facts["read_s"] > 0
    # Inputs of two blocks: 2 batches of 2 x 6 tokens, 16 bfloat16 features; and masks.
    assert facts["boundary_bytes"] >= 2 * 2 * 12 * 16 * 2


def test_a_checkpoint_is_written_once_and_never_over_another_model(folder):
    """A second call keeps the files; one for another shape names the way out."""
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}

    write_checkpoint(folder, TINY, lambda _: None)

    assert written == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(SystemExit, match="holds another model; name another --folder"):
        write_checkpoint(folder, with_blocks(TINY, 2), lambda _: None)
