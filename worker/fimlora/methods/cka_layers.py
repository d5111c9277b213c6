"""The layers that change their input most, after Ogawa et al. (2026, arXiv 2602.05988).

A layer's score is one less the centered kernel alignment (linear CKA) of its input and its output,
as hidden states of one token of each example: the layers whose output is least like their input are
chosen. ``cka-layers`` takes the debiased estimate. With fewer examples than features the usual
one calls everything alike (0.97 for independent Gaussians, 128 of 4,096 features); it is what
the authors publish, and `cka-layers-biased` has it.

Nothing of this reads a label. Examples that do not differ at that token, such as the embeddings
of a first token that is the same in all of them, are like nothing: such a layer has similarity 0.
"""

from fimlora.errors import InvalidOption
from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Record

# Places in what is recorded of a module's layer.
_DEBIASED, _BIASED, _N_EXAMPLES, _IS_LAST = range(4)


def score_debiased(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - there is one number per layer
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score layers by one less the debiased similarity of their input and output.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        The scores, from 0 to 2, of layers; a module shows its layer's. The provenance has the
        similarities.
    """
    return _scores(statistics, _DEBIASED, "debiased")


def score_biased(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Do the same by the usual estimate, as published.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        The scores, from 0 to 1.
    """
    return _scores(statistics, _BIASED, "biased")


def _scores(statistics: Statistics, place: int, estimate: str) -> Scores:
    recorded = statistics.quantities[Record.LAYER_SIMILARITY.value]
    of_layers = {}
    for module in statistics.modules:
        if module.block is None:
            continue
        if module.name not in recorded:
            raise InvalidOption(
                f"layer {module.block!r} has no similarity: it runs more than once in a pass, or "
                "its input and output are not hidden states of the same tokens; method "
                "'fisher-layers' is allowed"
            )
        of_layers[module.block] = recorded[module.name]
    by_layer = {block: max(0.0, 1 - float(v[place])) for block, v in of_layers.items()}
    facts = next(iter(of_layers.values()), (0.0, 0.0, 0.0, 0.0))
    return Scores(
        statistics.modules,
        {m.name: by_layer[m.block] if m.block else 0.0 for m in statistics.modules},
        by_layer=by_layer,
        base_parameters=statistics.base_parameters,
        provenance={
            "layer_score": f"1 - {estimate} linear CKA",
            "layer_similarity": {block: float(v[place]) for block, v in of_layers.items()},
            "similarity_token": "last" if facts[_IS_LAST] else "first",
            "similarity_examples": int(facts[_N_EXAMPLES]),
        },
    )
