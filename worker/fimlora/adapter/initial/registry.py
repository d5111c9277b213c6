"""The initial weights by name: what each needs measured, and what it does to the start.

This is the table alone, so that who only asks for names loads neither numpy nor torch;
`fimlora.adapter.initial.choose` makes the weights. The allocation of ranks is another axis: any
of these goes with any plan.
"""

from dataclasses import dataclass

from fimlora.errors import InvalidOption
from fimlora.statistics.groups import N_DIRECTIONS
from fimlora.statistics.options import Passes, Record

KAIMING = "kaiming"
# In a plan's provenance: a fact of the files that were written, not of what was measured.
INITIAL = "initial"


@dataclass(frozen=True, slots=True)
class Initial:
    """A named way to make the A and B that training begins with.

    Attributes:
        name: What it is asked for by.
        summary: What it is, in a line.
        source: Where it is from.
        record: What must be recorded for it.
        passes: What passes over the data it needs.
        most_rank: The highest rank it can fill of a module with more directions than are
            recorded; ``None`` where there is no such rank.
        code: Code of the warning that a plan written with it begins with; ``None`` for an adapter
            that is the base model at the start, and trains.
        start: What is to be minded at the start, as that warning says it.
        changes_base: Whether the base model's weights must be changed for it.
        reads_seed: Whether what is recorded is for one seed of A.
    """

    name: str
    summary: str
    source: str
    record: frozenset[Record] = frozenset()
    passes: Passes = Passes.NONE
    most_rank: int | None = None
    code: str | None = None
    start: str | None = None
    changes_base: bool = False
    reads_seed: bool = False


_ALL = (
    Initial(KAIMING, "A drawn at random, B zero: LoRA's own", "LoRA (Hu et al. 2021)"),
    Initial(
        "eva",
        "A the leading directions of the inputs, B zero",
        "EVA (Paischer et al. 2024)",
        frozenset({Record.INPUT_COMPONENTS}),
        Passes.FORWARD,
        N_DIRECTIONS,
    ),
    Initial(
        "lora-ga",
        "A and B from different leading directions of the mean gradient; the base model changes",
        "LoRA-GA (Wang et al. 2024)",
        frozenset({Record.GRADIENT_FACTORS}),
        Passes.BACKWARD,
        N_DIRECTIONS // 2,
        "base_changes",
        "need another base model: before training, and wherever the adapter is used, scale * B A "
        "of these initial weights must be off every target weight (fimlora.shift_base takes it "
        "off a loaded model, and puts it back); keep this folder for that, as on the base model "
        "as it is the adapter is wrong",
        changes_base=True,
    ),
    Initial(
        "lora-one",
        "B A is the best step of its rank down the mean gradient",
        "LoRA-One (Zhang et al. 2025)",
        frozenset({Record.GRADIENT_FACTORS}),
        Passes.BACKWARD,
        N_DIRECTIONS,
        "starts_moved",
        "have taken a step already: at the start the adapter is the base model moved down its "
        "mean gradient, not the base model; the base model itself is unchanged",
    ),
    Initial(
        "gora",
        "A drawn at random, B the step down the mean gradient that it allows",
        "GoRA (He et al. 2025), with the sign of its paper",
        frozenset({Record.PROJECTED_GRADIENT}),
        Passes.BACKWARD,
        N_DIRECTIONS,
        "starts_moved",
        "have taken a step already: at the start the adapter is the base model moved down its "
        "mean gradient, not the base model; the base model itself is unchanged",
        reads_seed=True,
    ),
    Initial(
        "zeros",
        "A and B zero: exactly the base model, to be filled by others",
        "a neutral element",
        code="does_not_train",
        start="are all zero, so that no gradient reaches them: the adapter is exactly the base "
        "model and does not train until other weights are put in",
    ),
)
_BY_NAME = {initial.name: initial for initial in _ALL}
INITS = tuple(_BY_NAME)
# Code of the warning of a plan that some experts train by: its initial weights say which.
EXPERTS_SELECTED = "experts_selected"
START_CODES = frozenset(initial.code for initial in _ALL if initial.code) | {EXPERTS_SELECTED}


def find_initial(name: str) -> Initial:
    """Look initial weights up.

    Args:
        name: Their name.

    Returns:
        What is known of them.

    Raises:
        InvalidOption: Nobody knows them.
    """
    if name not in _BY_NAME:
        raise InvalidOption(f"init={name!r}; allowed are {', '.join(map(repr, INITS))}")
    return _BY_NAME[name]


def init_records(name: str) -> frozenset[Record]:
    """Say what must be recorded for initial weights.

    Args:
        name: Their name.

    Returns:
        What `fimlora.measure` takes as ``record``.
    """
    return find_initial(name).record


def init_passes(name: str) -> Passes:
    """Say what passes over the data initial weights need.

    Args:
        name: Their name.

    Returns:
        The passes.
    """
    return find_initial(name).passes


def changes_base(name: str) -> bool:
    """Say whether the base model's weights must be changed for initial weights.

    Args:
        name: Their name.

    Returns:
        Whether they must.
    """
    return find_initial(name).changes_base
