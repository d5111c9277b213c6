"""The one place that puts hooks on a model: see a module's input and output gradient.

A forward hook passes the module's output through an identity whose backward step reports
the gradient. That has four consequences a plain tensor hook does not give. An in-place
operation after the module acts on the identity's output, so it cannot drop the hook (it
does after a biased ``nn.Linear``, whose output is a view). The identity also takes an
*anchor* that requires grad, so a fully frozen model still builds a graph, and only from its
lowest target upwards. What is kept of the input is a saved tensor of the graph, so gradient
checkpointing recomputes it instead of holding it. And a forward pass that is run again by
checkpointing reports one gradient, not two.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.model.embeddings import as_vectors
from fimlora.model.experts.forward import by_module, seeing_experts
from fimlora.model.experts.fused import is_experts, leaf_of, slice_name
from fimlora.model.experts.routed import Routed

# What is kept of one call's input, and the gradient of that call's output.
Call = tuple[tuple[Tensor, ...], Tensor]
Keep = Callable[[str, Any], tuple[Tensor, ...]]  # of a `Routed` where experts are fused
OnGradients = Callable[[str, list[Call]], None]
OnInput = Callable[[str, tuple[Tensor, ...]], None]
_AS_EVER: AbstractContextManager[object] = nullcontext()


class _ReportGradient(torch.autograd.Function):
    """Identity; its backward step hands the gradient and the kept tensors on."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        anchor: Tensor,  # noqa: ARG004 - being an input that requires grad is its whole part
        report: Callable[[tuple[Tensor, ...], Tensor], None],
        *kept: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*kept)
        ctx.report = report
        # Not `output` itself: autograd would call that a view and refuse in-place operations.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        kept = ctx.saved_tensors  # read once: checkpointing recomputes on every read
        ctx.report(kept, gradient)
        passed_on = gradient if ctx.needs_input_grad[0] else None
        return passed_on, None, None, *[None] * len(kept)


class Watch:
    """Counts calls against gradients, and hands over a module's calls when all have come.

    Attributes:
        calls: How often each module ran in the current forward pass.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        keep: Keep,
        on_gradients: OnGradients,
        on_input: OnInput | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._names = names
        self._keep = keep
        self._on_gradients = on_gradients
        self._on_input = on_input
        self._pending: dict[str, list[Call]] = defaultdict(list)
        self._in_forward = self._in_backward = False
        self._anchor = torch.zeros((), requires_grad=True)

    def begin_forward(self) -> None:
        """Forget the last pass; from now on every run of a module is a call."""
        self.calls.clear()
        self._pending.clear()
        self._in_forward, self._in_backward = True, False

    def end_forward(self) -> None:
        """Say that what runs from now on is no part of the pass, if no backward pass follows."""
        self._in_forward = False

    def backward(
        self,
        *roots: Tensor,
        gradients: Sequence[Tensor | None] | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Run the backward pass, and hand over every module that got a gradient.

        A call whose output the loss does not depend on gets none and adds nothing. A module
        without any is not handed over.

        Args:
            *roots: What to differentiate: the loss, or the outputs of a part of the model.
            gradients: Gradients that come from behind those outputs; the loss needs none.
            retain_graph: Whether there will be another backward pass over this forward pass.
        """
        self._in_backward = True  # a module that runs now is recomputed, not called again
        if any(root.requires_grad for root in roots):
            torch.autograd.backward(roots, gradients, retain_graph)
        for name in self._names:
            if self._pending.get(name):
                self._hand_over(name)

    def see(self, name: str, module_input: Tensor | Routed, output: Tensor) -> Tensor:
        """Take note of a call; the module's output is replaced by what this returns.

        Args:
            name: The module's name.
            module_input: Its input.
            output: Its output.

        Returns:
            The same values, on a graph that reports their gradient.
        """
        if not self._in_backward:
            self.calls[name] += 1
        if self._on_input is not None:
            if not self._in_forward:
                return output
            with torch.no_grad(), _as_they_are(module_input):
                self._on_input(name, self._keep(name, module_input.detach()))
            return output
        if not torch.is_grad_enabled():  # reentrant checkpointing comes back with it enabled
            return output
        with torch.no_grad(), _as_they_are(module_input):
            kept = self._keep(name, module_input.detach())
        report = partial(self._receive, name)
        apply: Callable[..., Tensor] = _ReportGradient.apply
        return apply(output, self._anchor, report, *kept)

    def _receive(self, name: str, kept: tuple[Tensor, ...], gradient: Tensor) -> None:
        pending = self._pending[name]
        pending.append((kept, gradient))
        if len(pending) == self.calls[name]:
            self._hand_over(name)

    def _hand_over(self, name: str) -> None:
        calls = self._pending.pop(name)
        with _as_they_are(calls[0][1]):
            self._on_gradients(name, calls)


def _as_they_are(tensor: Tensor | Routed) -> AbstractContextManager[object]:
    """Let no autocast that the model runs under narrow what is made of its tensors."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_EVER


@contextmanager
def watch_modules(
    modules: Mapping[str, nn.Module],
    keep: Keep,
    on_gradients: OnGradients,
    *,
    on_input: OnInput | None = None,
) -> Iterator[Watch]:
    """Watch modules for as long as the block lasts.

    Args:
        modules: The modules by the name they are reported under.
        keep: Called with a module's name and input on every forward pass; what it returns
            is kept until the gradient comes, and shared tensors are kept once.
        on_gradients: Called once per backward pass and module, with all its calls.
        on_input: Called on every forward pass with a module's name and what is kept, if there
            will be no backward pass; nothing is kept on then.

    Yields:
        The watch. All hooks are gone when the block ends, also when it raises.
    """
    fused = {name: module for name, module in modules.items() if is_experts(module)}
    watch = Watch(_watched(modules, fused), keep, on_gradients, on_input)

    def hook(
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        *,
        name: str,
    ) -> Any:
        if not isinstance(output, Tensor):
            return output  # nothing that LoRA could be added to
        module_input = args[0] if args else next(iter(kwargs.values()))
        if isinstance(module, nn.Embedding):
            module_input = as_vectors(module, module_input, output.dtype)
        return watch.see(name, module_input, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            if name in fused:
                continue
            handle = module.register_forward_hook(partial(hook, name=name), with_kwargs=True)
            stack.callback(handle.remove)
        for experts, names in by_module(fused).values():
            stack.enter_context(_watching_experts(experts, names, watch))
        yield watch


def _watched(
    modules: Mapping[str, nn.Module], fused: Mapping[str, nn.Module]
) -> tuple[str, ...]:
    """What is reported: modules, and of fused experts each one's matrix."""
    return tuple(
        each
        for name, module in modules.items()
        for each in (
            [slice_name(name, e) for e in range(len(getattr(module, leaf_of(name))))]
            if name in fused
            else [name]
        )
    )


def _watching_experts(
    experts: nn.Module, names: Sequence[str], watch: Watch
) -> AbstractContextManager[None]:
    """Watch some parameters of fused experts, each expert's matrix by a name of its own."""
    known = {leaf_of(name): name for name in names}

    def see(leaf: str, expert: int, given: Routed, output: Tensor) -> Tensor:
        if leaf not in known:
            return output
        return watch.see(slice_name(known[leaf], expert), given, output)

    return seeing_experts(names[0].rpartition(".")[0], experts, see)


@contextmanager
def watch_layers(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """See the hidden states that go into layers and come out of them, while the block lasts.

    Args:
        layers: The layers by the name they are reported under.
        see: Called after every call of a layer with its name, its input and its output: of
            several the first. A call with something else than tensors goes by unseen.

    Yields:
        None. All hooks are gone when the block ends, also when it raises.
    """

    def hook(
        module: nn.Module,  # noqa: ARG001 - torch's signature
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        *,
        name: str,
    ) -> None:
        given = (
            args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        )
        made = output[0] if isinstance(output, tuple) and output else output
        if isinstance(given, Tensor) and isinstance(made, Tensor):
            see(name, given.detach(), made.detach())

    with ExitStack() as stack:
        for name, module in layers.items():
            handle = module.register_forward_hook(partial(hook, name=name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def before_calls(
    modules: Mapping[str, nn.Module], action: Callable[[str], None]
) -> Iterator[None]:
    """Do something before every call of some modules, for as long as the block lasts.

    Args:
        modules: The modules by name.
        action: Called with the name of the module that is about to run.

    Yields:
        None. All hooks are gone when the block ends, also when it raises.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], *, name: str) -> None:  # noqa: ARG001
        action(name)

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(partial(hook, name=name))
            stack.callback(handle.remove)
        yield


@contextmanager
def after_calls(
    modules: Mapping[str, nn.Module], action: Callable[[str, Any], None]
) -> Iterator[None]:
    """Look at what some modules return, for as long as the block lasts.

    Args:
        modules: The modules by name.
        action: Called with the name of a module that has run, and its output.

    Yields:
        None. All hooks are gone when the block ends, also when it raises.
    """

    def hook(module: nn.Module, args: Any, output: Any, *, name: str) -> None:  # noqa: ARG001
        action(name, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_hook(partial(hook, name=name))
            stack.callback(handle.remove)
        yield


@contextmanager
def without_tokens(module: nn.Module, shape: tuple[int, ...]) -> Iterator[list[Tensor]]:
    """Let a module see no token of any example, for as long as the block lasts.

    Args:
        module: A module that is called with examples by tokens by features.
        shape: Examples and tokens. A call with others goes through as it is.

    Yields:
        The whole inputs it would have seen, of calls on this thread: other passes through
        the model may be under way on theirs. All hooks are gone when the block ends.
    """
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ARG001
        if threading.get_ident() != thread or not args or args[0].shape[:-1] != shape:
            return None
        seen.append(args[0])
        # Not one token: for that, kernels may first repeat the whole weight in their order.
        return (args[0][:, :0].detach().contiguous(),)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
