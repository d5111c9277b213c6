"""The numbers of a module's weight, for whoever needs these and not only what they make of x."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fimlora.errors import UnsupportedModule
from fimlora.model.linear_kinds import is_quantised, weight_of
from fimlora.shapes import Float


def check_plain_weights(modules: Mapping[str, nn.Module], *, wanted_by: Iterable[str]) -> None:
    """Refuse modules whose weights are packed: what is stored is not what they stand for.

    Args:
        modules: The modules by name.
        wanted_by: What asks for their weights.

    Raises:
        UnsupportedModule: One is packed.
    """
    for name, module in modules.items():
        if is_quantised(module):
            raise UnsupportedModule(
                f"record={', '.join(map(repr, wanted_by))} reads the weights themselves, and "
                f"{name!r} holds its own quantised ({_kind(module)}): "
                "load the model as it was before, or leave that out"
            )


@contextmanager
def plain_weight(module: nn.Module) -> Iterator[Float[Tensor, "O I"]]:
    """Look at a module's weight, wherever it lies.

    Args:
        module: A linear map that `check_plain_weights` has let pass.

    Yields:
        The weight, output features first, not copied where the module holds it.
    """
    if module.weight.is_meta:
        # Only accelerate keeps it elsewhere: it is there if the module has its hook.
        from accelerate.utils import align_module_device

        with align_module_device(module):
            yield _outputs_first(module)
    else:
        yield _outputs_first(module)


def _kind(module: nn.Module) -> str:
    weight = weight_of(module)
    return type(module).__name__ + ("" if weight is None else f", {weight.dtype}")


def _outputs_first(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()
