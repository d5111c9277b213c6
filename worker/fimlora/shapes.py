"""Array types with named axes: jaxtyping's where it is installed, plain types elsewhere.

``Float[Tensor, "N T O"]`` reads as "a float tensor of N examples, T tokens, O outputs".
The tests check these shapes; a machine without jaxtyping runs the engine unchecked.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
else:
    try:
        from jaxtyping import Float, Int
    except ModuleNotFoundError:

        class _Plain:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Float = Int = _Plain

__all__ = ["Float", "Int"]
