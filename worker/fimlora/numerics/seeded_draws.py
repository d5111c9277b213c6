"""Everything that is drawn: a LoRA-A by the name of its module, signs by their size and purpose.

Symbols: R rank, I input features. PEFT initialises A with Kaiming-uniform at a = sqrt(5),
which is U(-1/sqrt(I), 1/sqrt(I)), of variance 1/(3 I).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fimlora.plan import TargetModule
from fimlora.shapes import Float


def draw_lora_a(module: TargetModule, *, rank: int, seed: int) -> Float[Tensor, "R I"]:
    """Draw the A of one module from a generator of its own.

    The order of the modules, and which others are targets, change nothing. The draw is
    made on the CPU, so every device sees the same numbers. Of fused experts each has one of its
    own, and these stand one below the other, as PEFT has them.

    Args:
        module: The target module; its name enters the seed.
        rank: Rows of A.
        seed: The calibration's seed.

    Returns:
        A in float32 on the CPU, with ``rank`` rows for each expert of fused ones.
    """
    if module.n_experts is not None:
        experts = (
            replace(module, name=f"{module.name}[{e}]", n_experts=None)
            for e in range(module.n_experts)
        )
        return torch.cat([draw_lora_a(expert, rank=rank, seed=seed) for expert in experts])
    digest = hashlib.sha256(f"{seed}:{module.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bound = module.d_in**-0.5
    A = torch.empty(rank, module.d_in)
    return A.uniform_(-bound, bound, generator=generator)


def draw_embedding_b(module: TargetModule, *, rank: int, seed: int) -> Float[Tensor, "R O"]:
    """Draw the B of an embedding, which begins at random where a linear map's A does.

    Args:
        module: The embedding; its name enters the seed.
        rank: Columns of B.
        seed: The calibration's seed.

    Returns:
        B transposed, of PEFT's standard normal distribution, in float32 on the CPU.
    """
    digest = hashlib.sha256(f"{seed}:{module.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(rank, module.d_out, generator=generator)


def draw_signs(n_rows: int, n_columns: int, *, purpose: str) -> Float[Tensor, "R C"]:
    """Draw a matrix of random signs that depends on its size and purpose only.

    Modules of one size share it, and with one input also what comes of it: errors of
    different modules need not be independent. Drawn on the CPU, so that every device sees
    the same signs.

    Args:
        n_rows: Rows.
        n_columns: Columns.
        purpose: Tells apart matrices of one size.

    Returns:
        Entries of 1 and -1 in float32 on the CPU.
    """
    digest = hashlib.sha256(f"{purpose}:{n_rows}x{n_columns}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bits = torch.randint(0, 2, (n_rows, n_columns), dtype=torch.int8, generator=generator)
    return bits.float().mul_(2).sub_(1)


def draw_example_signs(
    numbers: Iterable[int], n_columns: int, *, seed: int
) -> Float[Tensor, "N C"]:
    """Draw a row of random signs for each of some examples.

    A row depends on the seed, its size and its example's number only: the same example has the
    same signs whatever it is drawn with, and another version of torch draws them too.

    Args:
        numbers: Which examples of the run.
        n_columns: Signs of each.
        seed: The calibration's seed.

    Returns:
        Entries of 1 and -1 in float32 on the CPU.
    """
    n_bytes = -(-n_columns // 8)
    names = (f"signs of {n_columns}:{seed}:{number}" for number in numbers)
    drawn = b"".join(hashlib.shake_256(name.encode()).digest(n_bytes) for name in names)
    rows = np.frombuffer(drawn, dtype=np.uint8).reshape(-1, n_bytes)
    bits = np.unpackbits(rows, axis=1, count=n_columns)
    return torch.from_numpy(bits).float().mul_(2).sub_(1)
