"""Refuse names of fused experts that a model cannot have, by what its checkpoint lists.

Loading fuses the matrices of experts that a checkpoint holds one by one, and may put them under
another block's part (``block_sparse_moe`` becomes ``mlp``). What is certain is what a parameter
is called, that it stands in ``experts``, and which blocks have some; the rest is for the worker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import first_places, wrong_entry

EXPERTS = "experts"
FUSED = frozenset({"gate_up_proj", "up_proj", "down_proj"})  # the engine adapts no others
# What loading makes of matrices that a checkpoint has for each expert.
MADE_OF = {
    frozenset({"gate_proj", "up_proj", "down_proj"}): {"gate_up_proj", "down_proj"},
    frozenset({"w1", "w2", "w3"}): {"gate_up_proj", "down_proj"},
    frozenset({"fc1", "fc2", "fc3"}): {"gate_up_proj", "down_proj"},
    frozenset({"up_proj", "down_proj"}): {"up_proj", "down_proj"},
}
# Where transformers puts experts in a block.
AROUND = frozenset({
    "mlp", "moe", "ffn", "mixer", "feed_forward", "block_sparse_moe", "text_moe", "vision_moe",
})  # fmt: skip
MOST_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class FusedNames:
    """What the names of a model's fused experts are made of.

    Attributes:
        leaves: What the parameters are called.
        around: Names of what the experts stand in.
        blocks: Numbers of the blocks that have some; empty where that is not certain.
        is_sure: Whether the leaves are known, so that the parameters stand in `EXPERTS`.
    """

    leaves: frozenset[str]
    around: frozenset[str]
    blocks: frozenset[str]
    is_sure: bool

    def may_have(self, entry: str) -> bool:
        """Whether an entry may be a parameter's name, or the end of one."""
        *path, leaf = entry.split(".")
        if leaf not in self.leaves:
            return False
        if not path or not self.is_sure:
            return True
        *path, experts = path
        if experts != EXPERTS:
            return False
        return self._may_hold(path)

    def _may_hold(self, path: list[str]) -> bool:
        numbers = [place for place, part in enumerate(path) if part.isdecimal()]
        inside = path[numbers[-1] + 1 :] if numbers else path
        if numbers and self.blocks and path[numbers[-1]] not in self.blocks:
            return False
        return self.around.issuperset(inside)

    def near(self, entry: str) -> str:
        """What to say instead of an entry that names none."""
        endings = [
            f"{EXPERTS}.{leaf}" if self.is_sure else leaf for leaf in sorted(self.leaves)
        ]
        close = get_close_matches(entry, endings, cutoff=0.5) or endings
        named = f"near names, or ends of them: {close}"
        if not self.blocks:
            return named
        numbers = sorted(map(int, self.blocks))
        some = ", ".join(map(str, numbers[:MOST_BLOCKS]))
        more = f" and {len(numbers) - MOST_BLOCKS} more" if len(numbers) > MOST_BLOCKS else ""
        return f"{named}; blocks with experts: {some}{more}"


def check_fused_experts(request: CalibrationRequest, *, shapes: Shapes) -> None:
    """Refuse entries of ``target_parameters`` that no model of these weights can have.

    Raises:
        ValidationFailed: There is one; the message has near names.
    """
    entries = request.target_parameters
    if not isinstance(entries, list):
        return
    names = fused_names(shapes)
    if names is None:
        return
    for entry, index in first_places(entries).items():
        if not names.may_have(entry):
            message = (
                f"the model has no parameter of fused experts {entry!r}; {names.near(entry)}"
            )
            raise wrong_entry(index, message, "unknown_target", field="target_parameters")


def fused_names(shapes: Shapes) -> FusedNames | None:
    """What a checkpoint's fused experts are called once it is loaded; ``None`` if it has none."""
    held = [name.split(".") for name in shapes if EXPERTS in name.split(".")[:-1]]
    if not held:
        return None
    paths = [parts[: parts.index(EXPERTS)] for parts in held]
    made, is_sure = _leaves([parts[parts.index(EXPERTS) + 1 :] for parts in held])
    others = {
        name.rpartition(".")[2]
        for name, shape in shapes.items()
        if len(shape) > 2 and any(word in name for word in ("expert", "moe"))
    }
    return FusedNames(
        leaves=frozenset(made if is_sure else FUSED | others),
        around=AROUND.union(*paths),
        blocks=_blocks(paths),
        is_sure=is_sure,
    )


def _leaves(inside: Iterable[list[str]]) -> tuple[set[str], bool]:
    """What the parameters are called after loading, and whether that is certain."""
    of_each, fused = set(), set()
    for first, *rest in inside:
        if first.isdecimal() and rest:
            of_each.add(rest[0])
        elif first.removesuffix("_bias") in FUSED and not rest:
            fused.add(first.removesuffix("_bias"))
        else:
            return set(), False
    if not of_each:
        return fused, True
    made = MADE_OF.get(frozenset(of_each))
    return (fused | made, True) if made else (set(), False)


def _blocks(paths: Iterable[list[str]]) -> frozenset[str]:
    """The last number in each path; none if a path has no number."""
    numbers: set[str] = set()
    for path in paths:
        last = next((part for part in reversed(path) if part.isdecimal()), None)
        if last is None:
            return frozenset()
        numbers.add(last)
    return frozenset(numbers)
