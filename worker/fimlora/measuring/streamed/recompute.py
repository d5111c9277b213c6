"""What one forward pass leaves behind, so that it can go backward block by block.

Every block's outputs go back into the model through a *cut*, an identity without a past. What
the model computes from them before it calls the next block is a small graph of its own, kept
as it is. On the way back gradients arrive at a block's cuts; the block is run again with them
(`Recomputation`), which gives the gradients of what it was called with; and through the graph
between the blocks those become gradients at the cuts of blocks before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from fimlora.errors import UnsupportedModule
from fimlora.measuring.streamed.boundary_store import BoundaryStore, SavedTensor
from fimlora.measuring.streamed.paused_forward import PendingCall
from fimlora.measuring.streamed.skipped_products import skip_products, track_uses
from fimlora.model.hooks import Watch

# What a gradient belongs to: ("out", call, position of the output), or ("in", call that was
# the first to get it, place among the new tensors there).
GradientKey = tuple[str, int, int]
_CUT_NODE = "_CutBackward"  # what torch calls a `_Cut` on the graph
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class _Cut(torch.autograd.Function):
    """Identity on a new graph, at whose node gradients are asked for."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ARG004 - torch's signature
        tensor: Tensor,
        anchor: Tensor,  # noqa: ARG004 - being an input that requires grad is its whole part
    ) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ARG004 - torch's signature
        return None, None


@dataclass
class BlockCall:
    """One block's part of a pass.

    Attributes:
        leaves: What it was called with, flattened; tensors are saved.
        spec: How to put them together again.
        new: Saved tensors that no block before it was called with.
        cuts: Where gradients of its outputs arrive, by position.
        unused: Linear maps of the block whose values only leave it.
    """

    leaves: list[Any]
    spec: Any
    new: list[SavedTensor]
    cuts: dict[int, GradientEdge] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)


class Recomputation:
    """A second run of one block, with the graph it had the first time.

    Args:
        block: The block.
        call: What it was called with.
        of_outputs: Gradients of its outputs by position.
        of_inputs: Gradients that blocks behind it have given of what they share with it.
    """

    def __init__(
        self,
        block: nn.Module,
        call: BlockCall,
        of_outputs: Mapping[int, Tensor],
        of_inputs: Mapping[SavedTensor, Tensor],
    ) -> None:
        self._leaves: dict[SavedTensor, Tensor] = {}
        self._roots: list[Tensor] = []
        self._gradients: list[Tensor] = []
        inputs = [
            self._fetch(x, of_inputs.get(x)) if isinstance(x, SavedTensor) else x
            for x in call.leaves
        ]
        args, kwargs = pytree.tree_unflatten(inputs, call.spec)
        with skip_products(block, call.unused):
            outputs = pytree.tree_leaves(block(*args, **kwargs))
        for position, gradient in of_outputs.items():
            self._begin_at(outputs[position], gradient)

    def _fetch(self, saved: SavedTensor, gradient: Tensor | None) -> Tensor:
        if saved not in self._leaves:
            tensor = saved.fetch().requires_grad_(saved.edge is not None)
            self._leaves[saved] = tensor
        tensor = self._leaves[saved]
        if gradient is None:
            return tensor
        # What later blocks gave is a root, so that all is added up as in one graph.
        used = tensor.view_as(tensor)
        self._begin_at(used, gradient)
        return used

    def _begin_at(self, root: Tensor, gradient: Tensor) -> None:
        self._roots.append(root)
        self._gradients.append(gradient)

    def backward(self, watch: Watch) -> dict[SavedTensor, Tensor]:
        """Go backward through the block.

        Args:
            watch: Sees the gradients of the target modules.

        Returns:
            Gradients of what the block was called with, those that later blocks gave included.
        """
        watch.backward(*self._roots, gradients=self._gradients)
        return {
            saved: leaf.grad for saved, leaf in self._leaves.items() if leaf.grad is not None
        }


class BlockCalls:
    """The blocks of one pass, in the order they ran, and the gradients on their way back.

    Args:
        store: Holds what blocks are called with.

    Attributes:
        calls: One for each block, from the first that has gradients on; the last ones go first.
    """

    def __init__(self, store: BoundaryStore) -> None:
        self.calls: list[BlockCall] = []
        self._store = store
        self._saved: Any = WeakTensorKeyDictionary()
        self._has_glue = False  # whether gradients also flow through what is between blocks
        self._of_outputs: dict[tuple[int, int], Tensor] = {}
        self._of_inputs: dict[SavedTensor, Tensor] = {}

    def run(self, block: nn.Module, call: PendingCall, *, keeps: bool) -> Any:
        """Run a block for its outputs.

        Args:
            block: The block.
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
                f"block {call.block!r} is called with a tensor that has no values: the model "
                "looks at the device of weights that are not loaded; measure it resident"
            )
        kept = self._keep(call.block, leaves, spec) if keeps else None
        args, kwargs = pytree.tree_unflatten(_on_a_new_graph(leaves), spec)
        # With a graph, dropped at once: kernels may differ where no gradient is asked for.
        if kept is None:
            made = block(*args, **kwargs)
        else:
            with track_uses(block) as uses:
                made = block(*args, **kwargs)
            kept.unused = uses.unused
        found, out_spec = pytree.tree_flatten(made)
        outputs = [_cut(value, kept, i) for i, value in enumerate(found)]
        return pytree.tree_unflatten(outputs, out_spec)

    def _keep(self, block: str, leaves: list[Any], spec: Any) -> BlockCall:
        call, moved = BlockCall([], spec, []), False
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *_PLAIN)):
                raise UnsupportedModule(
                    f"block {block!r} is called with a {type(leaf).__name__}, which it may "
                    "change; it cannot be run again"
                )
            kept: Any = leaf
            if isinstance(leaf, Tensor):
                # The first float tensor is what flows through the blocks.
                flows = leaf.is_floating_point() and not moved
                kept = self._save(leaf, call, move=flows or leaf.requires_grad)
                moved |= flows
            call.leaves.append(kept)
        self.calls.append(call)
        return call

    def _save(self, tensor: Tensor, call: BlockCall, *, move: bool) -> SavedTensor:
        saved: SavedTensor | None = self._saved.get(tensor)
        if saved is None:
            saved = self._store.save(tensor, move=move)
            self._saved[tensor] = saved
            call.new.append(saved)
            if saved.edge is not None and saved.edge.node.name() != _CUT_NODE:
                self._has_glue = True
        return saved

    def backward(self, loss: Tensor) -> None:
        """Go back from the loss to the outputs of the blocks.

        Args:
            loss: What the pass ends in.
        """
        self._flow_to_cuts([loss], None, retain_graph=self._has_glue)

    def recompute_last(self, block: nn.Module) -> Recomputation:
        """Run the last block again that has not gone back yet.

        Args:
            block: The block.

        Returns:
            Its second run.
        """
        last = len(self.calls) - 1
        of_outputs = {p: g for (call, p), g in self._of_outputs.items() if call == last}
        return Recomputation(block, self.calls[last], of_outputs, self._of_inputs)

    def finish_last(self, of_inputs: Mapping[SavedTensor, Tensor]) -> None:
        """Let go of the last block, and hand its gradients on to those before it.

        Args:
            of_inputs: Gradients of what it was called with.
        """
        call = self.calls.pop()
        for position in call.cuts:
            self._of_outputs.pop((len(self.calls), position), None)
        self._of_inputs |= of_inputs
        ready = {new: self._of_inputs.pop(new) for new in call.new if new in self._of_inputs}
        if ready:
            edges = [saved.edge for saved in ready if saved.edge is not None]
            # Graphs between blocks may share parts, so none is freed before all are done.
            self._flow_to_cuts(edges, list(ready.values()), retain_graph=True)
        for saved in call.new:
            saved.release()

    def _flow_to_cuts(
        self,
        ends: Sequence[Tensor] | Sequence[GradientEdge],
        gradients: Sequence[Tensor] | None,
        *,
        retain_graph: bool,
    ) -> None:
        """Go back through what lies between blocks, and add to the gradients of outputs."""
        cuts = {
            (number, position): edge
            for number, call in enumerate(self.calls)
            for position, edge in call.cuts.items()
        }
        if not cuts:
            return
        found = torch.autograd.grad(
            ends, [*cuts.values()], gradients, retain_graph=retain_graph, allow_unused=True
        )
        for key, gradient in zip(cuts, found, strict=True):
            if gradient is not None:
                so_far = self._of_outputs.get(key)
                self._of_outputs[key] = gradient if so_far is None else so_far + gradient

    def forget(self) -> None:
        """Let go of all that is kept for going back."""
        while self.calls:
            for saved in self.calls.pop().new:
                saved.release()
        self._of_outputs.clear()
        self._of_inputs.clear()

    def waiting(self) -> dict[GradientKey, Tensor]:
        """Name the gradients that blocks which have gone back have handed on.

        Returns:
            The gradients, by what they belong to.
        """
        of_outputs = {("out", *key): gradient for key, gradient in self._of_outputs.items()}
        return of_outputs | {
            ("in", number, i): self._of_inputs[saved]
            for number, call in enumerate(self.calls)
            for i, saved in enumerate(call.new)
            if saved in self._of_inputs
        }

    def restore(self, gradients: Mapping[GradientKey, Tensor]) -> None:
        """Go on from the gradients that an earlier run had.

        Args:
            gradients: What `waiting` gave then.
        """
        for (kind, number, i), gradient in gradients.items():
            if kind == "out":
                self._of_outputs[number, i] = gradient
            else:
                self._of_inputs[self.calls[number].new[i]] = gradient


def _on_a_new_graph(leaves: Sequence[Any]) -> list[Any]:
    """Detach tensors; one that comes twice stays one."""
    fresh: dict[int, Tensor] = {}
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            fresh[id(leaf)] = leaf.detach().requires_grad_(leaf.requires_grad)
    return [fresh.get(id(leaf), leaf) for leaf in leaves]


def _cut(value: Any, call: BlockCall | None, position: int) -> Any:
    """Cut an output from the graph of its block, and note where its gradient will arrive."""
    if not isinstance(value, Tensor):
        return value
    if call is None or not value.requires_grad:
        return value.detach()
    apply: Callable[..., Tensor] = _Cut.apply
    output = apply(value.detach(), torch.zeros((), requires_grad=True))
    call.cuts[position] = get_gradient_edge(output)
    return output
