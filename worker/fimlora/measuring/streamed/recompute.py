"""What one forward pass leaves behind, so that it can go backward block by block.

Every block's outputs go back into the model through a *cut*, an identity without a past. What
the model computes from them before it calls the next block is a small graph of its own, kept
as it is. On the way back gradients arrive at a block's cuts; the block is run again with them
(`Recomputation`), which gives the gradients of what it was called with; and through the graph
between the blocks those become gradients at the cuts of blocks before it.

A pass may end in several losses. Each has gradients of its own, a *flow*, that go back beside
those of the others: a block is run again once, and gone back through once for each of them.
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

# What a gradient belongs to: the number of its flow, and ("out", call, position of the output),
# or ("in", call that was the first to get it, place among the new tensors there).
GradientKey = tuple[int, str, int, int]
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


@dataclass
class Flow:
    """The gradients of one loss on their way back.

    Attributes:
        of_outputs: Those that arrived at outputs of blocks, by block call and position.
        of_inputs: Those that blocks have given of what they were called with, if it is
            shared with blocks before them.
    """

    of_outputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    of_inputs: dict[SavedTensor, Tensor] = field(default_factory=dict)


class Recomputation:
    """A second run of one block, with the graph it had the first time.

    Args:
        block: The block.
        call: What it was called with.
        number: Which call of the pass that is.
        flows: Where each loss's gradients of its outputs are, and of what blocks behind it
            share with it.
    """

    def __init__(
        self, block: nn.Module, call: BlockCall, number: int, flows: Sequence[Flow]
    ) -> None:
        self._leaves: dict[SavedTensor, Tensor] = {}
        self._roots: list[tuple[Tensor, list[Tensor | None]]] = []  # one gradient per flow
        self._n_flows = len(flows)
        inputs = [
            self._fetch(x, [flow.of_inputs.get(x) for flow in flows])
            if isinstance(x, SavedTensor)
            else x
            for x in call.leaves
        ]
        args, kwargs = pytree.tree_unflatten(inputs, call.spec)
        with skip_products(block, call.unused):
            outputs = pytree.tree_leaves(block(*args, **kwargs))
        for position in call.cuts:
            gradients = [flow.of_outputs.get((number, position)) for flow in flows]
            self._begin_at(outputs[position], gradients)

    def _fetch(self, saved: SavedTensor, gradients: list[Tensor | None]) -> Tensor:
        if saved not in self._leaves:
            tensor = saved.fetch().requires_grad_(saved.edge is not None)
            self._leaves[saved] = tensor
        tensor = self._leaves[saved]
        if all(gradient is None for gradient in gradients):
            return tensor
        # What later blocks gave is a root, so that all is added up as in one graph.
        used = tensor.view_as(tensor)
        self._begin_at(used, gradients)
        return used

    def _begin_at(self, root: Tensor, gradients: list[Tensor | None]) -> None:
        self._roots.append((root, gradients))

    def backward(self, watch: Watch, flow: int = 0) -> dict[SavedTensor, Tensor]:
        """Go backward through the block.

        Args:
            watch: Sees the gradients of the target modules.
            flow: The number of the flow whose turn it is; the last one comes last.

        Returns:
            Gradients of what the block was called with, those that later blocks gave included.
        """
        roots = [(root, given[flow]) for root, given in self._roots if given[flow] is not None]
        watch.backward(
            *[root for root, _ in roots],
            gradients=[gradient for _, gradient in roots],
            retain_graph=flow + 1 < self._n_flows,
        )
        found = {saved: leaf.grad for saved, leaf in self._leaves.items()}
        for leaf in self._leaves.values():
            leaf.grad = None
        return {saved: gradient for saved, gradient in found.items() if gradient is not None}


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
        self._flows: list[Flow] = []

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

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Go back from the losses to the outputs of the blocks.

        Args:
            losses: What the pass ends in; each has a flow of its own.
        """
        self._flows = [Flow() for _ in losses]
        for number, (loss, flow) in enumerate(zip(losses, self._flows, strict=True), 1):
            is_used_again = self._has_glue or number < len(losses)
            self._flow_to_cuts(flow, [loss], None, retain_graph=is_used_again)

    def recompute_last(self, block: nn.Module) -> Recomputation:
        """Run the last block again that has not gone back yet.

        Args:
            block: The block.

        Returns:
            Its second run.
        """
        last = len(self.calls) - 1
        return Recomputation(block, self.calls[last], last, self._flows)

    def finish_last(self, of_inputs: Sequence[Mapping[SavedTensor, Tensor]]) -> None:
        """Let go of the last block, and hand its gradients on to those before it.

        Args:
            of_inputs: Each flow's gradients of what it was called with.
        """
        call = self.calls.pop()
        for flow, gradients in zip(self._flows, of_inputs, strict=True):
            for position in call.cuts:
                flow.of_outputs.pop((len(self.calls), position), None)
            flow.of_inputs |= gradients
            given = flow.of_inputs
            ready = {new: given.pop(new) for new in call.new if new in given}
            if ready:
                edges = [saved.edge for saved in ready if saved.edge is not None]
                # Graphs between blocks may share parts, so none is freed before all are done.
                self._flow_to_cuts(flow, edges, list(ready.values()), retain_graph=True)
        for saved in call.new:
            saved.release()

    def _flow_to_cuts(
        self,
        flow: Flow,
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
                so_far = flow.of_outputs.get(key)
                flow.of_outputs[key] = gradient if so_far is None else so_far + gradient

    @property
    def n_flows(self) -> int:
        """How many losses the pass has ended in."""
        return len(self._flows)

    def forget(self) -> None:
        """Let go of all that is kept for going back."""
        while self.calls:
            for saved in self.calls.pop().new:
                saved.release()
        self._flows.clear()

    def waiting(self) -> dict[GradientKey, Tensor]:
        """Name the gradients that blocks which have gone back have handed on.

        Returns:
            The gradients, by what they belong to.
        """
        found: dict[GradientKey, Tensor] = {}
        for number, flow in enumerate(self._flows):
            found |= {(number, "out", *key): g for key, g in flow.of_outputs.items()}
            found |= {
                (number, "in", call_number, i): flow.of_inputs[saved]
                for call_number, call in enumerate(self.calls)
                for i, saved in enumerate(call.new)
                if saved in flow.of_inputs
            }
        return found

    def restore(self, gradients: Mapping[GradientKey, Tensor]) -> None:
        """Go on from the gradients that an earlier run had.

        Args:
            gradients: What `waiting` gave then.
        """
        self._flows = [Flow() for _ in range(1 + max((key[0] for key in gradients), default=0))]
        for (flow, kind, number, i), gradient in gradients.items():
            if kind == "out":
                self._flows[flow].of_outputs[number, i] = gradient
            else:
                self._flows[flow].of_inputs[self.calls[number].new[i]] = gradient


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
