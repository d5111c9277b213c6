"""The methods by name: by what rule each shares, what it needs recorded, and where it is from.

A method turns statistics into scores; its rule turns scores into ranks. This is the table alone,
so that who only asks for names loads neither numpy nor torch; `fimlora.methods.score` scores.
"""

from dataclasses import dataclass

from fimlora.errors import InvalidOption
from fimlora.statistics.options import Estimator, Passes, Record

CONTROLS = frozenset({"uniform", "random"})


@dataclass(frozen=True, slots=True)
class Method:
    """A named way from statistics to scores.

    Attributes:
        name: What it is asked for by.
        rule: The allocation rule that its scores go with.
        summary: What it goes by, in a line.
        source: Where it is from.
        record: What must be recorded besides.
        needs_examples: Whether it needs the energy of each example's gradient.
        fewest_examples: How many examples it compares at least.
        needs_null: Whether it needs the statistics of the null.
        needs_retain: Whether it needs those of rows whose function is to be kept.
        needs_fisher: Whether it needs what an estimator has recorded.
        passes: What passes over the data it needs.
        states: What a plan's provenance says of its scores, beside what statistics say of a run.
    """

    name: str
    rule: str
    summary: str
    source: str
    record: frozenset[Record] = frozenset()
    needs_examples: bool = False
    fewest_examples: int = 0
    needs_null: bool = False
    needs_retain: bool = False
    needs_fisher: bool = False
    passes: Passes = Passes.BACKWARD
    states: frozenset[str] = frozenset()

    @property
    def takes_selected_experts(self) -> bool:
        """Whether it goes by what is recorded of each expert by itself."""
        return not self.record and not self.needs_examples

    @property
    def reads_labels(self) -> bool:
        """Whether labels can move its plan at all."""
        return self.passes is Passes.BACKWARD and self.name not in CONTROLS


_OF_FISHER = frozenset({"aggregation"})
_OF_SIMILARITY = frozenset(
    {"layer_score", "layer_similarity", "similarity_token", "similarity_examples"}
)
_ALL = (
    Method(
        "fim",
        "proportional",
        "by the mean diagonal Fisher information of LoRA-B",
        "FIM-LoRA, equation 4",
        needs_fisher=True,
        states=_OF_FISHER,
    ),
    Method(
        "coherent",
        "proportional",
        "by the gradient energy that examples agree on (experimental)",
        "pairs of unlike examples, as in the gradient noise scale (McCandlish et al. 2018)",
        frozenset({Record.SPECTRA}),
        needs_examples=True,
        fewest_examples=2,
        states=frozenset({"negative_estimates", "negative_share"}),
    ),
    Method(
        "spectral",
        "spectral",
        "by marginal gain from singular values of the mean gradient (experimental: not shown to "
        "beat uniform)",
        "Eckart-Young; nearest: early-gradient-spectra-lora",
        frozenset({Record.SPECTRA}),
    ),
    Method(
        "spectral-denoised",
        "spectral",
        "by marginal gain from what of these singular values is above their noise (experimental)",
        "edge of a noise matrix (Johnstone 2001)",
        frozenset({Record.SPECTRA}),
        needs_examples=True,
        fewest_examples=2,
        states=frozenset({"within_noise"}),
    ),
    Method(
        "fim-over-null",
        "proportional",
        "by Fisher information over that under labels of other examples (experimental)",
        "a contrast of two runs, as in VILA (Kim et al. 2025)",
        needs_null=True,
        needs_fisher=True,
        states=_OF_FISHER,
    ),
    Method(
        "gora",
        "proportional",
        "by weights times their mean gradient: parameters, not ranks, in proportion (experimental)",
        "GoRA (He et al. 2025)",
        frozenset({Record.WEIGHT_GRADIENT}),
    ),
    Method(
        "vila",
        "proportional",
        "by Fisher information over that of rows whose function is to be kept (experimental)",
        "a contrast of two datasets, as in VILA (Kim et al. 2025)",
        needs_fisher=True,
        needs_retain=True,
        states=_OF_FISHER | {"contrast"},
    ),
    Method(
        "kappa",
        "proportional",
        "by how well weights are conditioned, without any data (experimental)",
        "KappaTune, as in PEFT",
        frozenset({Record.WEIGHT_CONDITION}),
        passes=Passes.NONE,
        states=frozenset({"condition_numbers"}),
    ),
    Method(
        "eva",
        "spectral",
        "by the share of the variance of its inputs that each direction has (no label is read)",
        "EVA (Paischer et al. 2024)",
        frozenset({Record.INPUT_COMPONENTS}),
        passes=Passes.FORWARD,
        states=frozenset({"input_components"}),
    ),
    Method(
        "fisher-layers",
        "layers",
        "the layers with the largest trace of the Fisher information share evenly (experimental)",
        "Lodha et al. 2023, with the trace in place of Frobenius norms",
        needs_examples=True,
        states=frozenset({"layer_score"}),
    ),
    Method(
        "fisher-layers-frobenius",
        "layers",
        "fisher-layers by the Frobenius norm of each weight's Fisher information (experimental)",
        "Lodha et al. 2023",
        frozenset({Record.PARAMETER_FISHER}),
        states=frozenset({"layer_score"}),
    ),
    Method(
        "cka-layers",
        "layers",
        "the layers whose output is least like their input share evenly (experimental)",
        "Ogawa et al. 2026, debiased (Song et al. 2012)",
        frozenset({Record.LAYER_SIMILARITY}),
        fewest_examples=4,
        passes=Passes.FORWARD,
        states=_OF_SIMILARITY,
    ),
    Method(
        "cka-layers-biased",
        "layers",
        "cka-layers by the usual, biased estimate (experimental)",
        "Ogawa et al. 2026, as published",
        frozenset({Record.LAYER_SIMILARITY}),
        fewest_examples=4,
        passes=Passes.FORWARD,
        states=_OF_SIMILARITY,
    ),
    Method(
        "effective-rank",
        "proportional",
        "by how many directions the mean gradient has, whitened by its inputs (experimental)",
        "re-implemented after early-gradient-spectra-lora",
        frozenset({Record.WHITENED_SPECTRA}),
        states=frozenset({"effective_rank_bounds", "unresolved_ranks"}),
    ),
    Method(
        "uniform",
        "uniform",
        "one rank for all: a strong default",
        "LoRA",
        states=_OF_FISHER,
    ),
    Method(
        "random",
        "random",
        "by random numbers: the control of any uneven plan",
        "a control",
        states=_OF_FISHER,
    ),
)
METHODS = {method.name: method for method in _ALL}


def find_method(name: str) -> Method:
    """Look a method up.

    Args:
        name: Its name.

    Returns:
        The method.

    Raises:
        InvalidOption: Nobody knows it.
    """
    if name not in METHODS:
        raise InvalidOption(f"method {name!r} is unknown; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def records_needed(*names: str) -> frozenset[Record]:
    """Say what methods need recorded besides, all of them together.

    Args:
        *names: Their names.

    Returns:
        What `fimlora.measure` takes as ``record``.
    """
    return frozenset().union(*(find_method(name).record for name in names))


def passes_needed(*names: str) -> Passes:
    """Say what passes over the data methods need, all of them together.

    Args:
        *names: Their names.

    Returns:
        The most that one of them needs; controls, which go by no score, only show what is there
        for the others.
    """
    methods = [find_method(name) for name in names]
    measured = [method for method in methods if method.name not in CONTROLS]
    return Passes.most(method.passes for method in measured or methods)


def estimator_for(name: str, estimator: str) -> str:
    """Say what to estimate for a method.

    Args:
        name: The method.
        estimator: What was asked for.

    Returns:
        That, or ``none`` where the method looks at no gradient and the choice was free.
    """
    is_free = estimator == Estimator.AUTO and passes_needed(name) is not Passes.BACKWARD
    return Estimator.NONE.value if is_free else estimator


def needs_null(*names: str) -> bool:
    """Say whether any of some methods needs the statistics of the null.

    Args:
        *names: Their names.

    Returns:
        Whether one does.
    """
    return any(find_method(name).needs_null for name in names)


def needs_retain(*names: str) -> bool:
    """Say whether any of some methods needs rows whose function is to be kept.

    Args:
        *names: Their names.

    Returns:
        Whether one does.
    """
    return any(find_method(name).needs_retain for name in names)
