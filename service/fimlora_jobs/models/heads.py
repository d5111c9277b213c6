"""Which heads transformers has for a type of model, from a table that ships with this package.

The service must say so without transformers. ``docs/generate.py`` makes the table and a test
holds it against the installed version. A type that is not in the table passes: the worker's
transformers may be newer, and a wrong refusal here would leave no way out.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fimlora_jobs.models.refusal import ModelRefused

TABLE = "heads.json"
CAUSAL, CLASSIFIES, MASKED = "causal_lm", "sequence_classification", "masked_lm"


def check_head(config: Mapping[str, Any], task: str) -> None:
    """Refuse a type of model that has no head for a task.

    Args:
        config: The content of a ``config.json``.
        task: ``causal_lm`` or ``sequence_classification``.

    Raises:
        ModelRefused: It has none, and the message says what it has.
    """
    kind = config.get("model_type")
    heads = known_heads().get(str(kind))
    if heads is None:
        return
    if task == CLASSIFIES and CLASSIFIES not in heads:
        other = "; give a dataset without labels" if CAUSAL in heads else ""
        raise ModelRefused(
            f"transformers has no sequence classification head for {kind}{other}"
        )
    # The same class is both, by a switch in its configuration.
    reads_both_ways = MASKED in heads and not config.get("is_decoder")
    if task == CAUSAL and (CAUSAL not in heads or reads_both_ways):
        other = (
            "; give a dataset with labels to calibrate it for sequence classification"
            if CLASSIFIES in heads
            else ""
        )
        raise ModelRefused(f"{kind} is no causal language model{other}")


@cache
def known_heads() -> Mapping[str, frozenset[str]]:
    """Heads by type of model."""
    table = json.loads((files(__package__) / TABLE).read_text(encoding="utf-8"))
    return {kind: frozenset(heads) for kind, heads in table["heads"].items()}
