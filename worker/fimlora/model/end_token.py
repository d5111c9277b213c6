"""Which token's hidden state stands for a whole example, by the kind of model.

Where tokens see only those before them, the last one alone has seen all; an encoder's first one is
made to stand for the example (``[CLS]``, ``<s>``).
"""

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fimlora.model.targets import base_model_of


def is_last_token(model: nn.Module) -> bool:
    """Say whether it is the last token that is not padding, and not the first.

    Args:
        model: A transformers model, wrapped by PEFT or not.

    Returns:
        ``False`` of architectures that are trained to fill in masked tokens, unless this one is
        set to be a decoder.
    """
    config = getattr(base_model_of(model), "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    is_encoder = getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return not is_encoder or bool(getattr(config, "is_decoder", False))
