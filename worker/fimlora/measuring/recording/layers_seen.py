"""Show a recorder what goes into layers and comes out of them, if a run compares that."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn

from fimlora.measuring.examples.examples import Examples
from fimlora.measuring.recording.recorder import Recorder
from fimlora.model.end_token import is_last_token
from fimlora.model.hooks import watch_layers
from fimlora.model.targets import base_model_of
from fimlora.plan import TargetModule


def watching_layers(
    model: nn.Module, modules: Iterable[TargetModule], recorder: Recorder
) -> AbstractContextManager[None]:
    """Watch the layers of some modules for as long as the block lasts.

    Args:
        model: The model, wrapped by PEFT or not.
        modules: The target modules.
        recorder: Is shown their layers' hidden states in its forward passes.

    Returns:
        A context; nothing is watched where nobody looks.
    """
    if not recorder.sees_layers:
        return nullcontext()
    base = base_model_of(model)
    blocks = dict.fromkeys(m.block for m in modules if m.block is not None)
    layers = {block: base.get_submodule(block) for block in blocks}
    return watch_layers(layers, partial(recorder.see_layer, is_last=is_last_token(model)))


@contextmanager
def showing_layers(
    model: nn.Module,
    modules: Iterable[TargetModule],
    recorder: Recorder,
    examples: Examples,
    ends: Examples | None,
) -> Iterator[None]:
    """Record the layers of some modules in a forward pass of its own.

    Args:
        model: The model.
        modules: The target modules.
        recorder: Records their layers and nothing else.
        examples: The examples of the pass.
        ends: The batch that they are the last of, if they are.

    Yields:
        None. What was seen counts if the block did not raise.
    """
    recorder.begin(
        examples.weights, examples.token_mask, is_whole=False, numbers=examples.numbers
    )
    with watching_layers(model, modules, recorder):
        yield
    recorder.commit()
    if ends is not None:
        recorder.end_batch(ends.order)
