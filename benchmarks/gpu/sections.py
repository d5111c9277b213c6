"""The parts of the run; each one runs in a process and a time limit of its own."""

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
from forms import Form, build, dense_config, mixture_config
from per_example import opacus_way, peft_one_by_one
from rows import Row, RowFile
from streamed import run_streamed
from turns import GIB, make_batches, take_turns

from floors import Floors, count_flops, matrix_rate
from measure import SCORED_RANK, Bare, Ours, Peft, share_weights
from stream_report import bus_rate

ROOT = Path(__file__).parents[2]
OPTIONAL = ("accelerate", "pydantic", "pytest", "beartype", "opacus", "kernels", "flash_attn")


def machine(form: Form, file: RowFile) -> None:
    """Versions, the rate of a large product, and that of the bus."""
    device = torch.device(form.device)
    there = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, "
    versions += f"peft {peft.__version__}, Python {platform.python_version()}; "
    file.add(Row("machine", "packages", "", note=versions + f"also {', '.join(there)}"))
    rate = matrix_rate(device, form.dtype)
    what = f"{form.dtype} product".removeprefix("torch.")
    file.add(Row("machine", what, "", facts={"tflops": rate / 1e12}))
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        note = f"{found.name}, {found.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        file.add(Row("machine", "device", "", note=note))
        file.add(Row("machine", "bus, pinned", "", facts={"gb_per_s": bus_rate() / 1e9}))


def resident(form: Form, file: RowFile) -> None:
    """The estimators beside the bare passes and PEFT, at two lengths."""
    model = build(dense_config(form.dense), form.device, form.dtype)
    for examples, tokens in form.lengths:
        batches = make_batches(form.dense["vocab_size"], 2, examples, tokens)
        floors = _floors(model, batches)
        take_turns(
            "resident",
            f"{_size(model)}, {examples} x {tokens}",
            model,
            batches,
            {
                "bare": Bare,
                "sampled": lambda m: Ours(m, "sampled"),
                "sketched": lambda m: Ours(m, "sketched"),
                "exact": lambda m: Ours(m, "exact"),
                "peft": Peft,
            },
            repeats=form.repeats,
            operations=partial(_operations, floors),
            file=file,
        )


def per_example(form: Form, file: RowFile) -> None:
    """What each example adds: ours in one pass, PEFT one example at a time, and a library."""
    model = build(dense_config(form.dense), form.device, form.dtype)
    examples, tokens = form.lengths[0]
    batches = make_batches(form.dense["vocab_size"], 1, examples, tokens)
    ways = {
        "bare": Bare,
        "exact": lambda m: Ours(m, "exact"),
        "sketched": lambda m: Ours(m, "sketched"),
        "peft, one by one": peft_one_by_one,
        "opacus": opacus_way,
    }
    if importlib.util.find_spec("opacus") is None:
        del ways["opacus"]
        file.add(Row("per-example", "", "opacus", note="not installed"))
    take_turns(
        "per-example",
        f"{_size(model)}, {examples} x {tokens}",
        model,
        batches,
        ways,
        repeats=max(1, form.repeats // 2),
        operations=lambda _: None,
        file=file,
    )


def mixture(form: Form, file: RowFile) -> None:
    """A mixture: its attention alone, and with its fused experts."""
    from fimlora import measure

    model = build(mixture_config(form.mixture), form.device, form.dtype)
    examples, tokens = form.mixture_length
    batches = make_batches(form.mixture["vocab_size"], 2, examples, tokens)

    def ours(estimator: str, *, experts: bool) -> Callable[..., object]:
        options = {"target_parameters": "all"} if experts else {}
        return lambda m: partial(
            measure, m, target_modules="all-linear", n_batches=len(batches),
            estimator=estimator, rank=SCORED_RANK, **options,
        )  # fmt: skip

    take_turns(
        "mixture",
        f"{_size(model)}, {form.mixture['num_experts']} experts, {examples} x {tokens}",
        model,
        batches,
        {
            "bare": Bare,
            "sampled": ours("sampled", experts=False),
            "exact": ours("exact", experts=False),
            "exact, with experts": ours("exact", experts=True),
            "sampled, with experts": ours("sampled", experts=True),
        },
        repeats=max(1, form.repeats // 2),
        operations=lambda _: None,
        file=file,
    )


def tests(form: Form, file: RowFile) -> None:
    """The tests that need a GPU, without what the suite itself asks for."""
    if form.device != "cuda" or not torch.cuda.is_available():
        file.add(Row("tests", "", "gpu", note="no CUDA device: not run"))
        return
    if importlib.util.find_spec("pytest") is None:
        file.add(Row("tests", "", "gpu", note="pytest is not installed: not run"))
        return
    for place in (
        "tests/engine/measuring/test_gpu.py",
        "tests/engine/measuring/streamed/test_block_weights.py",
        "tests/engine/numerics/test_products.py",
    ):
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-c", "/dev/null",
            "--rootdir", str(ROOT), "-p", "no:cacheprovider", str(ROOT / place),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        said = (done.stdout.strip() or done.stderr.strip() or "nothing said").splitlines()
        file.add(Row("tests", place, "gpu", note=f"exit {done.returncode}: {said[-1][:200]}"))


def _floors(model: torch.nn.Module, batches: object) -> Floors | None:
    """Operations of one batch; ``None`` where torch cannot count them."""
    try:
        shared = share_weights(model)
        return count_flops(shared, batches[0], Bare(shared), rank=SCORED_RANK)  # type: ignore[index]
    except Exception:
        return None


def _operations(floors: Floors | None, way: str) -> float | None:
    factor = floors.of(way) if floors is not None and way != "peft" else None
    return None if factor is None or floors is None else factor * floors.bare


def _size(model: torch.nn.Module) -> str:
    n = sum(p.numel() for p in model.parameters())
    return f"{n / 1e9:.1f}B" if n > 1e8 else f"{n / 1e6:.2f}M"


SECTIONS: dict[str, Callable[[Form, RowFile], None]] = {
    "machine": machine,
    "resident": resident,
    "per-example": per_example,
    "mixture": mixture,
    "streamed": run_streamed,
    "tests": tests,
}
