"""What the card of a hub dataset tells of its columns.

`datasets` writes them there, and reads the files by them. Where a card tells nothing, the
worker finds out, as it loads the rows.
"""

from collections.abc import Mapping
from typing import Any

from fimlora_contract.references import HubDataset
from fimlora_jobs.datasets.columns import TaskName, find_fields

LISTS = ("list", "sequence")


def card_has_chat(card: Any, dataset: HubDataset, *, task: TaskName) -> bool:
    """Whether the rows are conversations, by the dataset's card.

    Args:
        card: The card's metadata, whatever is in it.
        dataset: Which configuration and columns are meant.
        task: What the rows are for.

    Raises:
        ColumnError: The columns that the card names cannot be used.
    """
    features = _features(card, dataset.config)
    if not features:
        return False
    fields = find_fields(list(features), columns=dataset.columns, task=task)
    if fields.label:
        return False
    prompt = features.get(fields.prompt or "", {})
    return fields.messages is not None or any(kind in prompt for kind in LISTS)


def _features(card: Any, config: str | None) -> dict[str, Mapping[str, Any]]:
    """Features of the configuration by name; none where the card does not say."""
    found = card.get("dataset_info") if hasattr(card, "get") else None
    described = found if isinstance(found, list) else [found]
    infos = [info for info in described if isinstance(info, Mapping)]
    named = [
        info for info in infos if info.get("config_name", "default") == (config or "default")
    ]
    chosen = named or (infos if len(infos) == 1 and config is None else [])
    features = chosen[0].get("features") if chosen else None
    if not isinstance(features, list):
        return {}
    return {
        feature["name"]: feature
        for feature in features
        if isinstance(feature, Mapping) and isinstance(feature.get("name"), str)
    }
