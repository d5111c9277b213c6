"""What one forward pass leaves behind, so that it can go backward unit by unit.

Every unit's outputs go back into the model through an identity without a past. What the
model computes from them before it calls the next unit is a small graph of its own, kept as
it is; the unit is run again when its gradients are wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from fimlora.errors import UnsupportedModule
from fimlora.measuring.streamed.boundary_store import BoundaryStore, Held
from fimlora.measuring.streamed.paused_forward import UnitCall
from fimlora.measuring.streamed.skipped_products import noting_reads, products_left_out

_CUT_NODE = "_CutBackward"  # what torch calls a `_Cut` on the graph
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class _Cut(torch.autograd.Function):
    """Identity on a new graph; its backward step hands the gradient on."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        anchor: Tensor,  # noqa: ARG004 - being an input that requires grad is its whole part
        take: Callable[[Tensor], None],
    ) -> Tensor:
        ctx.take = take
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.take(gradients[0])
        return None, None, None


@dataclass
class Step:
    """One unit's part of a pass.

    Attributes:
        leaves: What it was called with, flattened; tensors are held.
        spec: How to put them together again.
        new: Tensors that no unit before it was called with.
        gradients: Gradients of its outputs, by position.
        unread: Linear maps of the unit whose values only leave it.
    """

    leaves: list[Any]
    spec: Any
    new: list[Held]
    gradients: dict[int, Tensor] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def take(self, position: int, gradient: Tensor) -> None:
        """Add to the gradient of an output."""
        held = self.gradients.get(position)
        self.gradients[position] = gradient if held is None else held + gradient


class Tape:
    """The units of one pass, in the order they ran.

    Attributes:
        steps: One for each, from the first that has gradients on.
        has_glue: Whether gradients also flow through what lies between the units.
    """

    def __init__(self, store: BoundaryStore) -> None:
        self.steps: list[Step] = []
        self.has_glue = False
        self._store = store
        self._held: Any = WeakTensorKeyDictionary()

    def give_up(self) -> None:
        """Let go of all that is held for going back: the pass is run anew."""
        while self.steps:
            for held in self.steps.pop().new:
                held.release()

    def run(self, unit: nn.Module, call: UnitCall, *, keeps: bool) -> Any:
        """Run a unit for its outputs.

        Args:
            unit: The unit.
            call: What the model called it with.
            keeps: Whether it will be run again.

        Returns:
            Its outputs, to go on with.

        Raises:
            UnsupportedModule: An input has no values, or cannot be kept.
        """
        leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            raise UnsupportedModule(
                f"block {call.unit!r} is called with a tensor that has no values: the model "
                "looks at the device of weights that are not loaded; measure it resident"
            )
        step = self._record(call.unit, leaves, spec) if keeps else None
        fresh: dict[int, Tensor] = {}
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                fresh[id(leaf)] = leaf.detach().requires_grad_(leaf.requires_grad)
        inputs = [fresh.get(id(leaf), leaf) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(inputs, spec)
        # With a graph, dropped at once: kernels may differ where no gradient is asked for.
        if step is None:
            made = unit(*args, **kwargs)
        else:
            with noting_reads(unit) as reads:
                made = unit(*args, **kwargs)
            step.unread = reads.unread
        found, out_spec = pytree.tree_flatten(made)
        outputs = [self._cut(value, step, i) for i, value in enumerate(found)]
        return pytree.tree_unflatten(outputs, out_spec)

    def _record(self, unit: str, leaves: list[Any], spec: Any) -> Step:
        step, moved = Step([], spec, []), False
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *_PLAIN)):
                raise UnsupportedModule(
                    f"block {unit!r} is called with a {type(leaf).__name__}, which it may "
                    "change; it cannot be run again"
                )
            kept: Any = leaf
            if isinstance(leaf, Tensor):
                # The first float tensor is what flows through the blocks.
                flows = leaf.is_floating_point() and not moved
                kept = self._hold(leaf, step, move=flows or leaf.requires_grad)
                moved |= flows
            step.leaves.append(kept)
        self.steps.append(step)
        return step

    def _hold(self, tensor: Tensor, step: Step, *, move: bool) -> Held:
        held: Held | None = self._held.get(tensor)
        if held is None:
            held = self._store.hold(tensor, move=move)
            self._held[tensor] = held
            step.new.append(held)
            if held.edge is not None and held.edge.node.name() != _CUT_NODE:
                self.has_glue = True
        return held

    @staticmethod
    def _cut(value: Any, step: Step | None, position: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        if step is None or not value.requires_grad:
            return value.detach()
        anchor = torch.zeros((), requires_grad=True)
        apply: Callable[..., Tensor] = _Cut.apply
        return apply(value.detach(), anchor, lambda gradient: step.take(position, gradient))


class Rerun:
    """A second run of one unit, with the graph it had the first time.

    Attributes:
        roots: Outputs and inputs to start the backward pass from.
        gradients: Their gradients.
    """

    def __init__(self, unit: nn.Module, step: Step) -> None:
        self._step = step
        self._leaves: dict[Held, Tensor] = {}
        self.roots: list[Tensor] = []
        self.gradients: list[Tensor] = []
        inputs = [self._fetch(x) if isinstance(x, Held) else x for x in step.leaves]
        args, kwargs = pytree.tree_unflatten(inputs, step.spec)
        with products_left_out(unit, step.unread):
            outputs = pytree.tree_leaves(unit(*args, **kwargs))
        for position, gradient in step.gradients.items():
            self.roots.append(outputs[position])
            self.gradients.append(gradient)

    def _fetch(self, held: Held) -> Tensor:
        if held not in self._leaves:
            tensor = held.fetch().requires_grad_(held.edge is not None)
            self._leaves[held] = tensor
        tensor = self._leaves[held]
        if held.gradient is None:
            return tensor
        # What later units gave is a root, so that all is added up as in one graph.
        used = tensor.view_as(tensor)
        self.roots.append(used)
        self.gradients.append(held.gradient)
        return used

    def pass_on(self) -> None:
        """After the backward pass: give the inputs' gradients to what made them."""
        for held, tensor in self._leaves.items():
            if tensor.grad is not None:
                held.gradient, tensor.grad = tensor.grad, None
        ready = [held for held in self._step.new if held.gradient is not None]
        if ready:
            edges = [held.edge for held in ready]
            gradients = [held.gradient for held in ready]
            # Graphs between units may share parts, so none is freed before all are done.
            torch.autograd.backward(edges, gradients, retain_graph=True)  # type: ignore[arg-type]
        for held in self._step.new:
            held.release()
