"""An unbiased sketch of the per-example Fisher information of LoRA-B, whatever the length.

Symbols as in `fimlora.measuring.recording.energies`; P rows of the sketch, A (P I) of 1 and -1,
the same for all modules of one input size, and s_n (I) random signs of example n.

With ``z[n] = x[n] (A * s_n)^T``, ``sum_t outer(g[n, t], z[n, t])`` is ``G[n] (A * s_n)^T``. The
entries of a row of ``A * s_n`` are independent signs, so its products with ``G[n, o, :]`` have
``||G[n, o, :]||^2`` as their mean square: the mean over the P rows is unbiased. As every example
has signs of its own, the errors of examples average out, which they would not with A alone.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fimlora.measuring.recording.energies import project_each, sketched_row_energies
from fimlora.measuring.recording.fisher_per_example import FisherPerExample, joined
from fimlora.measuring.recording.quantity import GramOf, Pass, SeenCall, present
from fimlora.numerics.last_input import LastInput
from fimlora.numerics.seeded_draws import draw_example_signs, draw_signs
from fimlora.plan import TargetModule


class FisherSketched(FisherPerExample):
    """Row energies from the gradients' products with a few sign vectors.

    Of an input only z is kept, P numbers per token; modules with one input share it. An
    example's signs depend on the seed, the input's size and the example's number in the run,
    so it does not matter which examples run together.

    Args:
        modules: The target modules.
        rank: Rows of A.
        seed: Seed of A and of the signs.
    """

    def __init__(self, modules: Sequence[TargetModule], *, rank: int, seed: int) -> None:
        super().__init__(modules)
        self._rank, self._seed = rank, seed
        self._lora_a: dict[int, Tensor] = {}  # by input features
        self._mixing: dict[
            tuple[int, torch.device], Tensor
        ] = {}  # A * s_n of this pass (N P I)
        self._last = LastInput[Tensor]()

    def begin(self, at_hand: Pass) -> None:
        """Expect a forward pass: its examples have other signs."""
        super().begin(at_hand)
        self._forget()

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep z."""
        return (self._last.get(x, lambda: project_each(self._mixing_of(x), x)),)

    def learn(self, calls: Mapping[str, int]) -> bool:  # noqa: ARG002
        """Let go of the last input, as the forward pass is over."""
        self._last.forget()
        return False

    def row_energies(self, name: str, calls: Sequence[SeenCall]) -> Tensor:  # noqa: ARG002
        """Square the sketches of the gradients of each example over all calls."""
        z, g = [call.kept[0] for call in calls], [call.g for call in calls]
        return sketched_row_energies(joined(z, dim=2), joined(g, dim=1))

    def discard(self) -> None:
        """Forget the pass."""
        super().discard()
        self._forget()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        super().commit()
        self._forget()

    def _forget(self) -> None:
        self._last.forget()
        self._mixing.clear()

    def _mixing_of(self, x: Tensor) -> Tensor:
        """Give ``A * s_n`` for every example at hand (N P I), drawn once for each input size."""
        key = (x.shape[-1], x.device)
        if key not in self._mixing:
            numbers = present(self.at_hand.numbers).tolist()
            signs = draw_example_signs(numbers, x.shape[-1], seed=self._seed)
            self._mixing[key] = (self._a_of(x.shape[-1]) * signs[:, None]).to(x.device)
        return self._mixing[key]

    def _a_of(self, n_features: int) -> Tensor:
        if n_features not in self._lora_a:
            purpose = f"sketch {self._seed}"
            self._lora_a[n_features] = draw_signs(self._rank, n_features, purpose=purpose)
        return self._lora_a[n_features]
