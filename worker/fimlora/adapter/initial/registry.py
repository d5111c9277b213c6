"""The initial weights by name: what each needs measured, and what it does to the start.

This is the table alone, so that who only asks for names loads neither numpy nor torch;
`fimlora.adapter.initial.choose` makes the weights. The allocation of ranks is another axis: any
of these goes with any plan.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora.statistics.groups import N_DIRECTIONS
from fimlora.statistics.options import Passes, Record

KAIMING = "kaiming"


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
START_CODES = frozenset(initial.code for initial in _ALL if initial.code)


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


def check_ceiling(name: str, modules: Iterable[TargetModule], r_max: Mapping[str, int]) -> None:
    """Refuse highest ranks that initial weights could not fill, before anything is measured.

    Args:
        name: Name of the initial weights.
        modules: The target modules.
        r_max: The highest rank that a plan may give a module, by its name.

    Raises:
        InvalidOption: A module could get more than is recorded for it.
    """
    most = find_initial(name).most_rank
    for module in modules:
        if most is not None and r_max[module.name] > most and _has_more(module):
            raise InvalidOption(
                f"init={name!r} fills ranks up to {most}, and r_max={r_max[module.name]} lets "
                f"{module.name!r} have more: give r_max={most} or less, or another init"
            )


def check_ranks(name: str, modules: Iterable[TargetModule], ranks: Mapping[str, int]) -> None:
    """Refuse ranks that initial weights cannot fill.

    Args:
        name: Name of the initial weights.
        modules: The target modules.
        ranks: Rank per module name.

    Raises:
        InvalidOption: One is higher than what is recorded.
    """
    most = find_initial(name).most_rank
    for module in modules:
        if most is not None and ranks[module.name] > most and _has_more(module):
            raise InvalidOption(
                f"init={name!r} fills ranks up to {most}, and {module.name!r} has rank "
                f"{ranks[module.name]}: plan with r_max={most} or less, or take another init"
            )


def check_statistics(name: str, statistics: Any, modules: Iterable[TargetModule]) -> None:
    """Refuse statistics that lack what initial weights are made of.

    Args:
        name: Name of the initial weights.
        statistics: What `fimlora.measure` returned; ``None`` where nothing is at hand.
        modules: The target modules.

    Raises:
        InvalidOption: Something is missing.
    """
    records = sorted(find_initial(name).record)
    if not records:
        return
    then = f"measure with record={records[0].value!r}"
    if statistics is None:
        raise InvalidOption(f"init={name!r} is made of what was measured: {then}, and give "
                            "these statistics")  # fmt: skip
    for group in _GROUPS[records[0]]:
        arrays = statistics.quantities.get(group, {})
        if missing := [m.name for m in modules if m.name not in arrays]:
            raise InvalidOption(
                f"init={name!r} needs {group} of {missing[0]!r}, which these statistics do not "
                f"hold: {then}"
            )


_GROUPS = {
    Record.INPUT_COMPONENTS: ("input_components",),
    Record.GRADIENT_FACTORS: ("gradient_left", "gradient_values", "gradient_right"),
    Record.PROJECTED_GRADIENT: ("gradient_projected",),
}


def check_seed(name: str, statistics: Any, seed: int) -> None:
    """Refuse to draw another A than what was recorded is for.

    Args:
        name: Name of the initial weights.
        statistics: What `fimlora.measure` returned.
        seed: Seed of the A that is to be written.

    Raises:
        InvalidOption: It was measured for another seed.
    """
    if find_initial(name).reads_seed and statistics.seed != seed:
        raise InvalidOption(
            f"init={name!r} with seed={seed}: gradients were projected by the A of seed="
            f"{statistics.seed}; write with that seed, or measure with this one"
        )


def _has_more(module: TargetModule) -> bool:
    """Whether a module has more directions than are recorded."""
    return min(module.d_in, module.d_out) > N_DIRECTIONS
