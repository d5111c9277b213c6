"""The arms of an evaluation: rank patterns that spend the same."""

from collections.abc import Mapping
from dataclasses import dataclass

from fimlora.allocation.division import dearest_step
from fimlora.errors import InvalidOption
from fimlora.left_out import NOT_SELECTED
from fimlora.plan import RankPlan
from fimlora_worker.errors import UnequalArms


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to share the budget.

    Attributes:
        name: Its name.
        plans: One plan; for the random control several, as one draw would say more about
            itself than about random ranks.
    """

    name: str
    plans: tuple[RankPlan, ...]

    def __post_init__(self) -> None:
        """Refuse an arm without a plan."""
        if not self.plans:
            raise InvalidOption(f"arm {self.name!r} has no plan")

    def plan(self, seed: int) -> RankPlan:
        """The plan that the run of a seed trains."""
        return self.plans[seed % len(self.plans)]


def check_equal(arms: Mapping[str, Arm]) -> None:
    """See that all plans of all arms adapt the same modules, scaled alike, and spend the same.

    Of a mixture they may train other experts of the same modules, or all of them.

    Parameters may differ by less than one step: the largest cost of as many ranks as a plan
    adds at once.

    Args:
        arms: By name.

    Raises:
        UnequalArms: They do not; the message has the first two that differ.
    """
    plans = [(arm.name, plan) for arm in arms.values() for plan in arm.plans]
    first_name, first = plans[0]
    step = max(map(dearest_step, (plan for _, plan in plans)))
    for name, plan in plans:
        if not _adapt_the_same(plan, first):
            raise UnequalArms(
                f"arms {first_name!r} and {name!r} are plans for different target modules"
            )
        if plan.scaling != "constant":
            raise UnequalArms(
                f"arm {name!r} has one alpha for all modules, so that their scales differ: arms "
                "must have one scale, as another one is another learning rate"
            )
        if plan.scale != first.scale:
            raise UnequalArms(
                f"arm {first_name!r} has scale {first.scale:g}, {name!r} {plan.scale:g}: they must "
                "have one scale, as another one is another learning rate"
            )
    spent = sorted((plan.spent.parameters, name) for name, plan in plans)
    (least, least_name), (most, most_name) = spent[0], spent[-1]
    if most - least >= step:
        raise UnequalArms(
            f"arm {most_name!r} trains {most:,} parameters, {least_name!r} {least:,}: more than "
            f"one step of {step:,} apart; solve all arms at one budget in parameters"
        )


def check_saved(arms: Mapping[str, Arm], saved: Mapping[str, int]) -> None:
    """See that all plans were made beside the same modules that train whole.

    Args:
        arms: By name.
        saved: Parameters, by name, of what the evaluation has trained whole in every run.

    Raises:
        UnequalArms: One was not.
    """
    for arm in arms.values():
        for plan in arm.plans:
            if odd := sorted(dict(plan.saved).keys() ^ saved.keys()):
                whose = "the plan alone" if odd[0] in plan.saved else "this evaluation alone"
                raise UnequalArms(
                    f"arm {arm.name!r} was planned with modules_to_save={sorted(plan.saved)}, and "
                    f"{odd[0]!r} is saved whole in {whose}: all arms must train the same modules "
                    "whole; give the modules_to_save that the plan was made with"
                )


def _adapt_the_same(plan: RankPlan, other: RankPlan) -> bool:
    """Whether two plans are for the same modules, whichever experts of these train."""
    mine, theirs = ({m.name: m.held_cost for m in each.modules} for each in (plan, other))
    return _meant(plan) == _meant(other) and not {
        name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]
    }


def _meant(plan: RankPlan) -> set[str]:
    """Its modules, and those of experts that were not selected."""
    not_selected = {name for name, why in plan.not_targeted.items() if why == NOT_SELECTED}
    return {module.name for module in plan.modules} | not_selected
