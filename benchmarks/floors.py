"""How much arithmetic measuring adds to a pass at the very least, to set its time against.

Counted are the products, each once: a Gram matrix is symmetric, so half of it, and modules
that are called in turn on one input share it. Sums, squares and copies are not counted.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fimlora import find_targets
from fimlora.measuring.recording.arithmetic import gram_is_cheaper
from fimlora.numerics.last_input import is_same_memory


@dataclass(frozen=True)
class Floors:
    """Floating point operations of one batch.

    Attributes:
        bare: Forward and backward to the activations of the frozen model.
        exact: Products of the estimator ``exact``, besides.
        sampled: Products of the estimator ``sampled``, besides.
        sketched: Products of the estimator ``sketched``, besides.
        batch: Products of ``batch_energies``, besides: the weight gradients themselves.
    """

    bare: int
    exact: int
    sampled: int
    sketched: int
    batch: int

    def of(self, way: str) -> float | None:
        """The least time of a way over that of the bare pass, at one rate of arithmetic."""
        added = {
            "bare": 0,
            "sampled": self.sampled,
            "sketched": self.sketched,
            "exact": self.exact,
            "both": self.exact + self.sampled,
            "sampled+batch": self.sampled + self.batch,
        }
        return 1 + added[way] / self.bare if way in added else None


def count_flops(
    model: nn.Module, batch: Mapping[str, Tensor], bare: Callable[..., None], *, rank: int
) -> Floors:
    """Count what a batch costs, in one bare pass.

    Args:
        model: A model without hooks that change anything.
        batch: A batch without padding.
        bare: Runs batches through the same model, forward and backward.
        rank: Rows of the A of ``sampled``.
    """
    n = len(batch["input_ids"])
    exact = sampled = sketched = of_batch = 0
    last: Tensor | None = None

    def count(x: Tensor, d_in: int, d_out: int) -> None:
        nonlocal exact, sampled, sketched, of_batch, last
        n_tokens = x.numel() // d_in // n
        features = d_out if last is not None and is_same_memory(last, x) else d_in + d_out
        sampled += 2 * n * n_tokens * rank * (d_in + d_out)
        sketched += 2 * n * n_tokens * rank * features
        of_batch += 2 * n * n_tokens * d_in * d_out
        if gram_is_cheaper(n_tokens, d_in, d_out):
            exact += n * n_tokens * (n_tokens + 1) * features
        else:
            exact += 2 * n * n_tokens * d_in * d_out
        last = x

    with ExitStack() as stack:
        for target in find_targets(model, "all-linear"):
            handle = model.get_submodule(target.name).register_forward_pre_hook(
                lambda _, args, t=target: count(args[0].detach(), t.d_in, t.d_out)
            )
            stack.callback(handle.remove)
        counter = stack.enter_context(
            FlopCounterMode(display=False, custom_mapping=_attention_on_cpu())
        )
        bare([batch])
    return Floors(counter.get_total_flops(), exact, sampled, sketched, of_batch)


def _attention_on_cpu() -> dict[Any, Callable[..., int]]:
    """What torch's counter leaves out: two products forward, and five backward."""

    def product(query: Any, key: Any) -> int:
        n, heads, n_queries, features = query
        return 2 * n * heads * n_queries * key[2] * features

    name = "_scaled_dot_product_flash_attention_for_cpu"
    return {
        getattr(torch.ops.aten, name): lambda q, k, *_, **__: 2 * product(q, k),
        getattr(torch.ops.aten, f"{name}_backward"): lambda _, q, k, *__, **___: (
            5 * product(q, k)
        ),
    }


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of one large product of two square matrices."""
    on_gpu = device.type == "cuda"
    size, clock = (8192, time.perf_counter) if on_gpu else (2048, time.process_time)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        if on_gpu:
            torch.cuda.synchronize(device)
        start = clock()
        left @ right
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return 2 * size**3 / min(seconds)
