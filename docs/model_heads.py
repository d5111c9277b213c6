"""The table of heads that the service refuses by, from the installed transformers."""

import json
from collections.abc import Iterable

# Of any two models: there is no such configuration without them.
PAIRS = frozenset({"encoder-decoder"})


def model_heads() -> str:
    """Heads by type of model: a family has those of every type that shares its configuration."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from fimlora_jobs.models.heads import CAUSAL, CLASSIFIES, MASKED, MULTIMODAL, SEQ2SEQ

    mappings = {
        CAUSAL: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        CLASSIFIES: auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        MASKED: auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        SEQ2SEQ: _encoder_decoders(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        MULTIMODAL: auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    classes = {
        head: {CONFIG_MAPPING_NAMES[kind] for kind in mapping if kind in CONFIG_MAPPING_NAMES}
        for head, mapping in mappings.items()
    }
    lines = ",\n".join(
        f"{json.dumps(kind)}: {json.dumps([h for h in classes if name in classes[h]])}"
        for kind, name in sorted(CONFIG_MAPPING_NAMES.items())
    )
    return f'{{"heads": {{\n{lines}\n}}}}\n'


def _encoder_decoders(kinds: Iterable[str]) -> list[str]:
    """Those that are: the mapping has models that listen, too."""
    from transformers import CONFIG_MAPPING

    return [
        kind
        for kind in kinds
        if kind not in PAIRS and CONFIG_MAPPING[kind]().is_encoder_decoder
    ]
