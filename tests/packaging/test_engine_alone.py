"""The engine and its benchmarks need torch, transformers, peft and safetensors only."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# A name that is None in sys.modules cannot be imported. What transformers itself needs stays.
HIDE = """
import runpy, sys
OURS = ["fimlora_contract", "fimlora_client", "fimlora_service", "fimlora_worker"]
OTHERS = ["pydantic", "fastapi", "redis", "rq", "datasets", "cachetools", "jaxtyping", "beartype"]
sys.modules.update(dict.fromkeys(OURS + OTHERS))
sys.path[:0] = ["worker", "benchmarks"]
"""


APPLY = """
import tempfile, torch, transformers
from fimlora import Settings, apply_fim_ranks, load_plan, measure_streamed
from peft import LoraConfig, get_peft_model
config = transformers.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
model = transformers.BertForSequenceClassification(config)
batch = {"input_ids": torch.randint(5, 50, (4, 8)), "labels": torch.tensor([0, 1, 1, 0])}
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder + "/base")
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=["query", "value"]))
    plan = apply_fim_ranks(peft_model, [batch], r_min=1)
    peft_model.save_pretrained(folder + "/adapter")
    settings = Settings(target_modules=["query", "value"])
    statistics = measure_streamed(folder + "/base", [batch], settings)
print("applied", sum(plan.ranks.values()), len(statistics.modules))
"""
SCRIPTS = ("measure", "stream", "spectra", "allocate")
START = f"""
for script in {SCRIPTS}:
    sys.argv = [script + ".py", "--help"]
    try:
        runpy.run_path(f"benchmarks/{{script}}.py", run_name="__main__")
    except SystemExit as end:
        print(script, "ended with", end.code)
"""


@pytest.fixture(scope="module")
def ran() -> subprocess.CompletedProcess[str]:
    """Both where nothing else can be imported; one process, as importing takes longest."""
    command = [sys.executable, "-c", HIDE + APPLY + START]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_ranks_are_applied_to_a_live_model(ran):
    """The whole way from a model to a saved adapter, without the service's libraries."""
    assert "applied 16 4" in ran.stdout.splitlines(), ran.stderr


def test_benchmarks_start(ran):
    """So that a machine with a GPU and little else can run them."""
    ends = [line for line in ran.stdout.splitlines() if "ended with" in line]
    assert ends == [f"{script} ended with 0" for script in SCRIPTS], ran.stderr
    assert ran.returncode == 0
