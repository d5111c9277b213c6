"""``docs/methods.md``: the methods, of which names, sources and passes come from the registry."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Pages that several methods share.
PAGES = {
    "uniform": "controls",
    "random": "controls",
    "cka-layers-biased": "cka-layers",
    "fisher-layers-frobenius": "fisher-layers",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What the registry does not say of a method.

    Attributes:
        signal: What of the model, the data and the labels it goes by.
        memory: What is kept beside a pass.
        checked: What it is held against here, and where.
        left_out: What of the original is not taken over, and why.
        writes: What comes of a plan.
    """

    signal: str
    memory: str
    checked: str
    left_out: str
    writes: str = "ranks"


_LEFT_OUT = "ranks; with `r_min` 0, modules left out"
_FEWER = "all; some servers want every layer"
_FULL = "a gradient per target module, or a sketch of it above 1 GiB"
_SPECTRA = "exact SVD, and the rule by brute force (`engine/allocation/test_spectral.py`)"
ROWS = {
    "fim": Row(
        "each example's weight gradient, squared",
        "sums over rows of the gradient, a number per example and module",
        "autograd through a PEFT model, and the formula per example "
        "(`engine/laws/test_agreement.py`)",
        "the random A (integrated out; `sampled` has it) and the published rounding, which misses "
        "budgets",
    ),
    "coherent": Row(
        "inner products of unlike examples' gradients",
        _FULL,
        "every pair of examples by autograd (`engine/methods/test_coherence.py`)",
        "nothing: there is no original",
    ),
    "spectral": Row(
        "singular values of the mean gradient",
        _FULL,
        _SPECTRA,
        "the source's effective rank under preconditioning; its rule is ours",
        _LEFT_OUT,
    ),
    "spectral-denoised": Row(
        "the same, less the edge of their noise",
        _FULL,
        "noise of known variance and planted values (`engine/methods/test_spectral_denoised.py`)",
        "noise that is not isotropic, as that of real gradients is",
        _LEFT_OUT,
    ),
    "fim-over-null": Row(
        "`fim`, over itself under labels of other examples",
        "the sums of `fim` twice",
        "the ratio by hand, and autograd under exchanged labels (`engine/laws/test_null.py`)",
        "nothing: there is no original",
    ),
    "vila": Row(
        "`fim`, over itself on rows to retain",
        "the sums of `fim`, of one dataset at a time",
        "autograd per example of both datasets, and the formula (`engine/methods/test_vila.py`)",
        "the variance of batch means, the constant 1e-5, and the initialisation, which changes the "
        "base weights",
    ),
    "uniform": Row(
        "nothing",
        "nothing",
        "laws of the budget (`engine/allocation/test_controls.py`)",
        "nothing",
    ),
    "random": Row(
        "nothing",
        "nothing",
        "laws of the budget (`engine/allocation/test_controls.py`)",
        "the published draw, which misses its budget",
    ),
    "eva": Row(
        "shares of variance along the principal components of each module's inputs",
        "64 components per module and 1,024 rows",
        "PEFT's `initialize_lora_eva_weights` on the same batches (`engine/methods/test_eva.py`)",
        "going on until all have converged, which may never end; stopping early, which binds a run "
        "to one budget; whitening",
        f"{_LEFT_OUT}; with `adapter.init: eva`, A",
    ),
    "gora": Row(
        "weights times the mean gradient, absolute",
        "a gradient per target module, never sketched",
        "a loop over entries and autograd per example "
        "(`engine/measuring/recording/test_weight_gradient.py`)",
        "rounding and clamping that miss budgets, and the sign that goes uphill",
        "ranks; with `adapter.init: gora`, B",
    ),
    "kappa": Row(
        "condition number of each weight",
        "two numbers per module",
        "PEFT's `find_kappa_target_modules` on the same weights "
        "(`engine/measuring/recording/test_weight_condition.py`)",
        "leaving modules out by a share: ranks meet a budget",
    ),
    "effective-rank": Row(
        "entropy of the spectrum of the whitened mean gradient",
        _FULL,
        "autograd and a dense decomposition "
        "(`engine/measuring/recording/test_whitened_spectra.py`)",
        "its knapsack, as every method shares one exact budget; a full covariance",
    ),
    "fisher-layers": Row(
        "trace of the Fisher information of a layer's target weights",
        "the sums of `fim`",
        "autograd per example, summed by layer (`engine/methods/test_fisher_layers.py`)",
        "its defects: one example taken a hundred times, a raw logit in place "
        "of the likelihood, padding, a head drawn anew",
        "ranks of k layers, the others left out",
    ),
    "fisher-layers-frobenius": Row(
        "Frobenius norms of that information, entry by entry",
        "an array per target weight",
        "autograd per example, entry by entry (`engine/methods/test_fisher_layers.py`)",
        "the same defects",
        "ranks of k layers, the others left out",
    ),
    "cka-layers": Row(
        "likeness of a layer's input and output at one token",
        "two hidden states per example and layer, in host memory",
        "both formulas in float64 on the model's own hidden states "
        "(`engine/measuring/recording/test_layer_similarity.py`)",
        "the bias: 0.97 for independent Gaussians of 4,096 features; a layer that is skipped",
        "ranks of k layers, the others left out",
    ),
    "cka-layers-biased": Row(
        "the same, as published",
        "the same",
        "the same",
        "a layer that is skipped",
        "ranks of k layers, the others left out",
    ),
}
INTRO = """# Methods

A method makes scores of what one run has measured; its rule shares a budget by them. All of them
have the same modules, the same exact budget and the same bounds, and are written as the same adapter,
so that [`fimlora compare`](cli.md) shows them side by side and [an evaluation](evaluations.md) trains
them. Made by `make docs` from the registry and from `docs/methods_page.py`.

**Uniform LoRA is a strong default.** No method here has been shown to beat it in general; the paper
whose `fim` this is puts its own gains below the spread between seeds. Any uneven pattern may do as
well as a measured one, so every plan comes with uniform and random ranks that spend the same, and
with how much of it follows from the labels. "Fisher" means the empirical Fisher of the stated loss.
"""
PLANS = """## What each goes by

*Passes* are over the calibration batches; what several methods need comes from one run, those with
rows to retain aside. *Labels* says whether other labels could move the plan at all. Every plan is a
rank pattern: *read by* all means [all consumers](consumers.md), in layout B as unequal ranks, and in
layout C padded to one rank for those that want it. None changes the base model.
"""
SOURCES = """## Where each is from, and how it was checked here

Tests are named below `tests/`. What an installed package has is held against that package; all else
is a re-implementation from formulas, held against a slow one of its own.
"""
INITIAL = """## Initial weights, with the ranks of any method

`adapter.init` (`--init`) is an axis of its own; [initial weights](initial-weights.md) has formulas,
needs and checks. What is not the base model at the start says so in the plan's first warning.
"""
TRAINING = """## Methods that a calibration cannot run

They move ranks while an adapter is trained, start one, or are no plan of ranks. A request that names
one is refused with this sentence.
"""


def methods_page() -> str:
    """The page."""
    parts = [
        [INTRO],
        [PLANS, *_plans()],
        [SOURCES, *_sources()],
        [INITIAL, *_initial()],
        [TRAINING, *_training()],
    ]
    return "\n\n".join("\n".join(lines).rstrip("\n") for lines in parts) + "\n"


def _plans() -> Iterator[str]:
    from fimlora.methods.registry import METHODS

    yield _line(
        "method", "rule", "signal it uses", "passes", "labels", "memory", "writes", "read by"
    )
    yield _line(*["---"] * 8)
    for name, method in METHODS.items():
        row = ROWS[name]
        labels = "move it" if method.reads_labels else "do not"
        yield _line(
            f"[`{name}`](methods/{PAGES.get(name, name)}.md)",
            f"`{method.rule}`",
            row.signal,
            _passes(name),
            labels,
            row.memory,
            row.writes,
            "all" if "left out" not in row.writes else _FEWER,
        )


def _passes(name: str) -> str:
    """The passes of a method, in words."""
    from fimlora.methods.registry import CONTROLS, METHODS
    from fimlora.statistics.options import Passes

    method = METHODS[name]
    if name in CONTROLS or method.passes is Passes.NONE:
        return "none"
    if method.passes is Passes.FORWARD:
        return "forward"
    if method.needs_null:
        return "forward, backward twice"
    each = ", for each dataset" if method.needs_retain else ""
    return f"forward, backward{each}"


def _sources() -> Iterator[str]:
    from fimlora.methods.registry import METHODS

    yield _line("method", "source", "held against", "left out, and why")
    yield _line(*["---"] * 4)
    for name, method in METHODS.items():
        row = ROWS[name]
        yield _line(f"`{name}`", method.source, row.checked, row.left_out)


def _initial() -> Iterator[str]:
    from fimlora.adapter.initial.registry import INITS, find_initial

    yield _line("init", "what it is", "passes", "source")
    yield _line(*["---"] * 4)
    for name in INITS:
        initial = find_initial(name)
        yield _line(_linked(name), initial.summary, str(initial.passes), initial.source)


def _training() -> Iterator[str]:
    from fimlora_contract.training_time import TRAINING_TIME

    yield _line("name", "it", "here")
    yield _line(*["---"] * 3)
    for name, (reason, instead) in TRAINING_TIME.items():
        yield _line(_linked(name), reason, instead)


def _linked(name: str) -> str:
    """A name, with its page where it has one."""
    page = f"methods/{name}.md"
    return f"[`{name}`]({page})" if (HERE / page).exists() else f"`{name}`"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
