"""A rule decides which scores are taken."""

import pytest

from fimlora import measure, score
from fimlora.errors import InvalidOption
from support.models import make_batch, tiny


def test_an_unknown_rule_is_refused_with_those_there_are():
    """It is not scored like the rule that is the default."""
    model, targets = tiny("bert_classifier")
    statistics = measure(model, [make_batch("bert_classifier", [3])], target_modules=targets)
    allowed = "proportional, spectral, uniform, random"

    with pytest.raises(InvalidOption, match=f"'greedy' is unknown; expected one of {allowed}"):
        score(statistics, rule="greedy")
