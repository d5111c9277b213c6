"""Coherent gradient energy: the part of the Fisher information that examples agree on.

``fim`` scores ``E ||G||^2``, of which most is noise that differs from example to example, and is
there also when labels say nothing. What they agree on is ``||E G||^2``, estimated without bias by
the pairs of unlike examples (`fimlora.methods.coherence`); where labels say nothing about inputs
beyond their frequencies, and the head already gives these, it is zero in expectation.

It takes the energy of the mean gradient of the whole run, which comes with the spectra, not that
of each batch: for one product per module either way, that counts all N (N - 1) pairs and not only
those inside a batch, 63 in place of 7 per example at eight batches of eight.

Divided as the mean of ``fim`` is, by ``3 d_in d_out / s^2``, its unit is that of ``fim``: the
squared gradient of one entry of LoRA-B, in expectation over the random A.
"""

from fimlora.methods.coherence import part_gradients
from fimlora.scores import Scores
from fimlora.statistics import Statistics


def score_coherent(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - there is one number per module
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score every target module by the gradient energy that its examples agree on.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        The scores. An estimate below zero counts as none; the provenance has it as it was, by
        name, and the share of modules that have such a one.
    """
    parts, raw = part_gradients(statistics), {}
    for module in statistics.modules:
        entries = 3 * module.n_weights
        raw[module.name] = statistics.scale**2 * parts[module.name].signal / entries
    negative = {name: value for name, value in raw.items() if value < 0}
    return Scores(
        statistics.modules,
        {name: max(0.0, value) for name, value in raw.items()},
        base_parameters=statistics.base_parameters,
        provenance={
            "negative_estimates": negative,
            "negative_share": len(negative) / max(1, len(raw)),
        },
    )
