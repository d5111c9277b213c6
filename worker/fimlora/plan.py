"""The plan: an integer rank for every target module, and the budget it meets.

Words: a *module* is a linear map ``W`` of shape ``d_out x d_in`` that gets LoRA; its *cost*
is what one rank adds to the trainable parameters, ``d_in + d_out``. Fused experts are one module
of E such maps, of one rank and E times the cost, or that of the experts which are selected to train.
Nothing here imports torch, so a service without the engine's extras can read and re-solve plans.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from html import escape
from numbers import Real
from typing import Any, Literal, get_args

from fimlora.constraints import Constraints
from fimlora.errors import InvalidAdapter, InvalidOption
from fimlora.plan_table import plan_table
from fimlora.scaling import Scaling, alpha_of, check_scaling, scale_of
from fimlora.shares import shares_of
from fimlora.whole_names import MODULES_TO_SAVE, checked_facts

RANK_MAP_FORMAT = "fimlora.rank_map/1"
BudgetUnit = Literal["rank", "parameters", "fraction", "bytes"]
_WIDTHS = (1, 2, 4, 8)
BLOCK_INDEX = re.compile(r"\.(\d+)\.")  # of a block, in a module's name
TOWERS = ("language", "vision", "audio", "connector")  # what a family is, or begins with
_DERIVED = ("limit", "unspent")  # beside the budget's own fields in a rank map


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A linear map that gets LoRA, or the maps of all experts that one parameter holds.

    Attributes:
        name: Dotted name in the *base* model's tree (never with PEFT's prefix); of fused
            experts, the parameter's.
        d_in: Input features.
        d_out: Output features.
        fan_in_fan_out: The weight is stored ``d_in x d_out`` (GPT-2's ``Conv1D``).
        n_experts: Of fused experts, how many matrices the one parameter of that name holds;
            each gets an A and a B of the same rank. ``None`` for a linear map.
        is_embedding: It is a table of ``d_in`` rows, which PEFT adapts by ``lora_embedding_A``
            and ``_B``: there A begins at zero, and B does not.
        family: What it is part of in a model of several towers or several kinds of mixer, such
            as ``vision`` or ``language.attention``; see `fimlora.model.families`. ``None`` where
            all of a model is one family, or nobody has asked. It tells modules not apart.
        experts: Of fused experts, which of them train, rising; ``None`` for all. The others have
            an A and a B of zeros.
    """

    name: str
    d_in: int
    d_out: int
    fan_in_fan_out: bool = False
    n_experts: int | None = None
    is_embedding: bool = False
    family: str | None = field(default=None, compare=False)
    experts: tuple[int, ...] | None = None

    @property
    def n_matrices(self) -> int:
        """Matrices of ``d_out x d_in`` that it stands for."""
        return self.n_experts or 1

    @property
    def n_weights(self) -> int:
        """Numbers in them."""
        return self.n_matrices * self.d_in * self.d_out

    @property
    def full_rank(self) -> int:
        """The highest rank that an update of it can have; ranks go no further."""
        return min(self.d_in, self.d_out)

    @property
    def n_trained(self) -> int:
        """Matrices whose A and B train."""
        return self.n_matrices if self.experts is None else len(self.experts)

    @property
    def cost(self) -> int:
        """Parameters of one rank that train."""
        if self.n_experts is None and self.experts is None:  # of most: no call more for each
            return self.d_in + self.d_out
        return self.n_trained * (self.d_in + self.d_out)

    @property
    def held_cost(self) -> int:
        """Parameters of one rank as PEFT holds, saves and counts them, zeros included."""
        return self.n_matrices * (self.d_in + self.d_out)

    @property
    def layer(self) -> int | None:
        """Index of the block the module sits in, ``None`` outside the repeated blocks."""
        return place_of(self.name)[0]

    @property
    def block(self) -> str | None:
        """Name of that block, such as ``model.layers.3``: stacks may share an index."""
        return place_of(self.name)[1]

    @property
    def kind(self) -> str:
        """What the module is inside its block, such as ``self_attn.q_proj``."""
        return place_of(self.name)[2]


@lru_cache(maxsize=1 << 17)  # of more than one large model; rules ask many times for each
def place_of(name: str) -> tuple[int | None, str | None, str]:
    """Find a module's place by its name.

    Args:
        name: The name.

    Returns:
        Layer, block and kind, as `TargetModule` says what they are.
    """
    match = BLOCK_INDEX.search(name)
    if match is None:
        return None, None, name
    return int(match[1]), name[: match.end() - 1], name[match.end() :]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may spend.

    Attributes:
        unit: ``rank`` (mean rank), ``parameters`` (trainable parameters), ``fraction``
            (of the base model's parameters) or ``bytes`` (of the LoRA matrices A and B,
            unpadded).
        value: The amount, in that unit; a fraction is at most 1.
        bytes_per_parameter: Width of a saved parameter, 1, 2, 4 or 8; only read for
            ``bytes``.
    """

    unit: BudgetUnit
    value: int | float
    bytes_per_parameter: int = 4

    def __post_init__(self) -> None:
        if self.unit not in get_args(BudgetUnit):
            allowed = ", ".join(get_args(BudgetUnit))
            raise InvalidOption(f"budget unit {self.unit!r} is unknown; allowed are {allowed}")
        value: Any = self.value
        given = f"budget {self.unit}={value!r}"
        # bool is a number to Python, and NumPy's numbers are not int or float.
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number:
            raise InvalidOption(f"{given}: it must be a number above 0 and finite")
        if not 0 < value < float("inf"):
            raise InvalidOption(f"{given}: it must be above 0 and finite")
        if self.unit == "fraction" and value > 1:
            raise InvalidOption(f"{given}: a fraction of the base model is at most 1")
        width: Any = self.bytes_per_parameter
        if isinstance(width, bool) or width not in _WIDTHS:
            raise InvalidOption(f"bytes_per_parameter={width!r}; allowed are 1, 2, 4 and 8")
        whole = value == int(value)  # 8 and 8.0 are one budget and print alike
        object.__setattr__(self, "value", int(value) if whole else float(value))
        object.__setattr__(self, "bytes_per_parameter", int(width))


@dataclass(frozen=True, slots=True)
class Spending:
    """Ranks and trainable parameters of one way to spend the budget."""

    ranks: int
    parameters: int


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """Something to mind before training by a plan.

    Attributes:
        code: What it is about, a stable word.
        message: A sentence with the number it is about, and the next step.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The integer rank of every target module.

    Attributes:
        modules: The target modules, in the model's order.
        ranks: Rank per module name; 0, which only ``spectral`` and ``layers`` give, means "not
            targeted".
        scores: Score per module name as measured, whatever the rule made of it; for
            ``spectral`` the energy of the mean gradient that the rank captures.
        budget: The budget as requested.
        limit: The budget in the unit the solver worked in: ranks in total for ``rank``,
            trainable parameters for all others.
        rule: ``proportional``, ``spectral``, ``layers``, ``uniform`` or ``random``.
        r_min: Lowest rank allowed; of ``layers``, in the layers that are chosen.
        r_max: Highest rank allowed.
        scale: The one effective LoRA scale ``s = alpha / rank`` of every module; with another
            scaling than ``constant``, only what the scores are stated at.
        controls: Ranks per module name of the control plans at the same budget.
        provenance: Facts about the measurement (estimator, aggregation, examples, ...).
        not_targeted: What the choice of targets means but is not one of them, by name, with
            the reason in a sentence.
        signal: How much of the plan follows from the task, as plain data, if that was asked.
        confidence: How sure the ranks are, as plain data, if that is known.
        method: The method that made the scores; ``None`` for scores of one's own.
        warnings: What to mind before training by it.
        constraints: What the ranks keep to besides, as do those of the controls.
        scaling: How alpha follows from rank: ``constant``, ``alpha`` or ``rslora``; see
            `fimlora.scaling`.
        lora_alpha: The one alpha of all modules, unless the scale is constant.
    """

    modules: tuple[TargetModule, ...]
    ranks: Mapping[str, int]
    scores: Mapping[str, float]
    budget: Budget
    limit: int
    rule: str
    r_min: int
    r_max: int
    scale: int | float
    controls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    not_targeted: Mapping[str, str] = field(default_factory=dict)
    signal: Mapping[str, Any] | None = None
    confidence: Mapping[str, Any] | None = None
    method: str | None = None
    warnings: tuple[PlanWarning, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)
    scaling: Scaling = "constant"
    lora_alpha: int | float | None = None

    def __post_init__(self) -> None:
        check_scaling(self.scaling, self.lora_alpha)

    @property
    def spent(self) -> Spending:
        """Ranks and trainable parameters this plan spends."""
        return self.spending_of(self.ranks)

    @property
    def unspent(self) -> int:
        """What is left of the limit, in its unit.

        Ranks are left only where tied ranks, multiples or a menu cannot add up to the limit.
        """
        spent = self.spent
        return self.limit - (spent.ranks if self.budget.unit == "rank" else spent.parameters)

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest rank as far as some module can have them, to be shown."""
        highest = min(self.r_max, max((m.full_rank for m in self.modules), default=self.r_max))
        return min(self.r_min, highest), highest

    @property
    def saved(self) -> Mapping[str, int]:
        """Parameters, by name, of modules that train whole besides; no budget counts them."""
        return dict(self.provenance.get(MODULES_TO_SAVE) or {})

    def spending_of(self, ranks: Mapping[str, int]) -> Spending:
        """Ranks and trainable parameters of any rank assignment over these modules."""
        return Spending(
            ranks=sum(ranks.values()),
            parameters=sum(m.cost * ranks[m.name] for m in self.modules),
        )

    def shares(self) -> dict[str, list[dict[str, Any]]]:
        """Where ranks and parameters lie, by type and depth, beside those of uniform ranks."""
        return shares_of(
            self.modules, self.ranks, self.controls.get("uniform"), scores=self.scores
        )

    def alpha(self, name: str) -> int | float:
        """LoRA alpha of a module: ``scale * rank``, or the one alpha of all; 0 if not targeted."""
        rank = self.ranks[name]
        return alpha_of(rank, scale=self.scale, alpha=self.lora_alpha) if rank else 0

    def scale_of(self, name: str) -> int | float:
        """Effective scale of a module that has a rank: what its update is multiplied by."""
        return scale_of(
            self.ranks[name], scaling=self.scaling, scale=self.scale, alpha=self.lora_alpha
        )

    def to_json(self) -> dict[str, Any]:
        """The rank map as plain data, in a fixed order: same plan, same bytes."""
        return {
            "format": RANK_MAP_FORMAT,
            "budget": {**asdict(self.budget), "limit": self.limit, "unspent": self.unspent},
            "method": self.method,
            "rule": self.rule,
            "r_min": self.r_min,
            "r_max": self.r_max,
            "constraints": self.constraints.to_json(),
            "scale": self.scale,
            "scaling": self.scaling,
            "lora_alpha": self.lora_alpha,
            "spent": asdict(self.spent),
            "shares": self.shares(),
            "controls": {
                name: {**asdict(self.spending_of(ranks)), "pattern": dict(ranks)}
                for name, ranks in sorted(self.controls.items())
            },
            "provenance": dict(self.provenance),
            "not_targeted": dict(self.not_targeted),
            **self._evidence(),
            "warnings": [asdict(warning) for warning in self.warnings],
            "modules": [
                {
                    # By hand: `asdict` copies every value of every module, which takes longer.
                    "name": module.name,
                    "d_in": module.d_in,
                    "d_out": module.d_out,
                    "fan_in_fan_out": module.fan_in_fan_out,
                    **_where_it_is_so(module),
                    "layer": module.layer,
                    "kind": module.kind,
                    "score": self.scores[module.name],
                    "rank": self.ranks[module.name],
                    "alpha": self.alpha(module.name),
                    "parameters": module.cost * self.ranks[module.name],
                }
                for module in self.modules
            ],
        }

    def _repr_html_(self) -> str:
        """Show the plan in a notebook: what it spends, what it is worth, and its ranks."""
        sentence = escape(str((self.signal or {}).get("sentence", "")))
        spent, (lowest, highest) = self.spent, self.bounds
        said = (
            f"{len(self.modules):,} modules, ranks {lowest} to {highest}, "
            f"{spent.ranks:,} ranks, {spent.parameters:,} trainable parameters"
        )
        table = plan_table(self.modules, self.ranks)
        return f"<p>{sentence}</p>" * bool(sentence) + f"<p>{said}</p>{table}"

    def _evidence(self) -> dict[str, Any]:
        """What is known of the plan's worth; a plan without it says nothing about it."""
        known = {"signal": self.signal, "confidence": self.confidence}
        return {name: dict(facts) for name, facts in known.items() if facts is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RankPlan":
        """Read what `to_json` wrote.

        Returns:
            The plan, equal to the one that was written.

        Raises:
            InvalidAdapter: The data is not a rank map of a known format.
        """
        if data.get("format") != RANK_MAP_FORMAT:
            raise InvalidAdapter(
                f"format {data.get('format')!r} is not a rank map; expected {RANK_MAP_FORMAT!r}"
            )
        try:
            budget = {k: v for k, v in data["budget"].items() if k not in _DERIVED}
            rows = data["modules"]
            return cls(
                modules=tuple(
                    TargetModule(
                        r["name"],
                        r["d_in"],
                        r["d_out"],
                        r["fan_in_fan_out"],
                        r.get("n_experts"),
                        r.get("is_embedding", False),
                        r.get("family"),
                        None if r.get("experts") is None else tuple(r["experts"]),
                    )
                    for r in rows
                ),
                ranks={r["name"]: r["rank"] for r in rows},
                scores={r["name"]: r["score"] for r in rows},
                budget=Budget(**budget),
                limit=data["budget"]["limit"],
                rule=data["rule"],
                r_min=data["r_min"],
                r_max=data["r_max"],
                scale=data["scale"],
                constraints=Constraints.of(**data.get("constraints", {})),
                scaling=data.get("scaling", "constant"),
                lora_alpha=data.get("lora_alpha"),
                controls={k: dict(v["pattern"]) for k, v in data["controls"].items()},
                provenance=checked_facts(data["provenance"]),
                not_targeted=dict(data.get("not_targeted", {})),
                signal=data.get("signal"),
                confidence=data.get("confidence"),
                warnings=tuple(
                    PlanWarning(row["code"], row["message"]) for row in data.get("warnings", ())
                ),
                method=data.get("method"),
            )
        except (KeyError, TypeError, AttributeError, InvalidOption) as error:
            raise InvalidAdapter(f"the rank map lacks or misuses a field: {error}") from error


def _where_it_is_so(module: TargetModule) -> dict[str, Any]:
    """Of a row: how many matrices it is where not one, which train, that it is a table, its family."""
    found: dict[str, Any] = {}
    if module.n_experts is not None:
        found["n_experts"] = module.n_experts
    if module.experts is not None:
        found["experts"] = list(module.experts)
    if module.is_embedding:
        found["is_embedding"] = True
    if module.family is not None:
        found["family"] = module.family
    return found
