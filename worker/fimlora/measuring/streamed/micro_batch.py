"""A micro-batch on its way through a streamed model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.measuring.examples.examples import Examples
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.paused_forward import Pass
from fimlora.measuring.streamed.recompute import Tape
from fimlora.model.hooks import watch_modules


class MixedExamplesError(Exception):
    """A target's input does not have the examples as its first axis."""


@dataclass
class Part:
    """A micro-batch.

    Attributes:
        examples: Its examples.
        forward: Its pass through the model, up to the losses.
        tape: What that pass has left behind.
    """

    examples: Examples
    forward: Pass
    tape: Tape

    @classmethod
    def of(
        cls, examples: Examples, losses: Callable[[], Tensor], store: BoundaryStore
    ) -> "Part":
        """Make one that has not begun.

        Args:
            examples: Its examples.
            losses: Runs the model's forward pass.
            store: Holds what units are called with.

        Returns:
            The micro-batch.
        """
        tape = Tape(store)

        def body() -> Tensor:
            found = losses()
            if found.requires_grad:
                # The sum, not the mean: each example's gradient comes out unscaled.
                found.sum().backward(retain_graph=tape.has_glue)
            return found.detach()

        return cls(examples, Pass(body), tape)

    def run(self, unit: nn.Module, targets: Mapping[str, nn.Module], *, keeps: bool) -> object:
        """Run the unit that it waits at; the pass waits on for what the unit returned.

        Args:
            unit: The unit.
            targets: Its target modules by name.
            keeps: Whether the unit will be run again.

        Returns:
            What to advance the pass with.

        Raises:
            MixedExamplesError: The examples must go one at a time.
        """  # noqa: DOC502 - `look` raises
        n, call = len(self.examples), self.forward.call
        assert call is not None

        def look(name: str, x: Tensor) -> tuple[Tensor, ...]:
            if n > 1 and x.shape[0] != n:
                raise MixedExamplesError(name)
            return ()

        with watch_modules(targets, look, lambda name, calls: None):  # noqa: ARG005
            return self.tape.run(unit, call, keeps=keeps)


def next_unit(parts: Sequence[Part]) -> str | None:
    """Name the unit that all micro-batches wait at.

    Args:
        parts: The micro-batches.

    Returns:
        The unit's name; ``None`` when all have ended.

    Raises:
        UnsupportedModule: They wait at different ones.
    """
    names = {part.forward.call.unit if part.forward.call else None for part in parts}
    if len(names) > 1:
        raise UnsupportedModule(f"batches take different ways through the model: {names}")
    return names.pop()
