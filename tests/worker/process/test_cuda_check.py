"""A worker that is told to use a GPU and has none ends at once, not with every job."""

import os
import subprocess
import sys

import pytest
import torch

from fimlora_worker.process.cuda_check import why_no_cuda

ENVIRONMENT = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "7"}


def ends(status: int) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({status})"]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (ends(0), None),
        (ends(3), "torch sees no CUDA device (CUDA_VISIBLE_DEVICES=7)"),
        (ends(1), "torch cannot be loaded"),
        (["/nonexistent"], "torch did not answer (FileNotFoundError)"),
    ],
)
def test_one_sentence_says_why_and_what_to_do(question, said):
    """Whichever way the question ends."""
    found = why_no_cuda(ENVIRONMENT, question=question)

    assert (
        (found is None) if said is None else (said in found and "FIMLORA_DEVICE=auto" in found)
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_its_gpu_does_not_start(tmp_path):
    """One line on standard error, and a status that says configuration; no queue is touched."""
    environment = os.environ | {
        "FIMLORA_DEVICE": "cuda",
        "FIMLORA_DATA_DIR": str(tmp_path / "data"),
        "REDIS_URL": "redis://127.0.0.1:9/0",  # nothing listens there
    }
    ended = subprocess.run(
        [sys.executable, "-m", "fimlora_worker"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert ended.returncode == os.EX_CONFIG
    assert ended.stderr.count("\n") == 1
    assert "torch sees no CUDA device" in ended.stderr
    assert not (tmp_path / "data").exists()
