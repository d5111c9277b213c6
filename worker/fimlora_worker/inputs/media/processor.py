"""A model's processor: what makes its inputs of text, images and sounds."""

import importlib.util
from pathlib import Path
from typing import Any

from fimlora_worker.errors import UnsupportedArchitecture
from fimlora_worker.inputs.media.processor_files import check_processor_files
from fimlora_worker.inputs.model_faults import named_as
from fimlora_worker.inputs.models import prepared_tokenizer

VIDEO = "video_processor"
NEEDS_PILLOW = (
    "the rows have images or sounds, and this worker cannot read them: install "
    "fimlora[media] where it runs"
)


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a model, its tokenizer padding on the right.

    Videos are not read, so that what would read them is left out where it can be.

    Raises:
        UnsupportedArchitecture: The model has none, its files ask for what none can be, or its own
            code fails.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UnsupportedArchitecture(NEEDS_PILLOW)
    check_processor_files(folder)
    with named_as("the model's processor cannot be loaded"):
        processor = _load(folder, config)
    if getattr(processor, "tokenizer", None) is None:
        raise UnsupportedArchitecture(
            f"the model's processor ({type(processor).__name__}) has no tokenizer: save the "
            "processor of the model beside its weights (preprocessor_config.json, tokenizer)"
        )
    tokenizer = prepared_tokenizer(processor.tokenizer)
    if not tokenizer.is_fast:
        raise UnsupportedArchitecture(
            "the model's tokenizer does not say which characters a token stands for, which rows "
            "with images need: save it as tokenizer.json"
        )
    if processor.chat_template:
        tokenizer.chat_template = processor.chat_template
    return processor


def _load(folder: Path, config: Any) -> Any:
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    here = {"trust_remote_code": False, "local_files_only": True}
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    parts = kind.get_attributes() if hasattr(kind, "get_attributes") else ()
    if {*parts} != {"image_processor", "tokenizer", VIDEO}:
        return AutoProcessor.from_pretrained(folder, **here)
    made = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, **here),
        "tokenizer": AutoTokenizer.from_pretrained(folder, **here),
        VIDEO: None,
    }
    facts, rest = kind.get_processor_dict(folder, **here)
    return _without_videos(kind).from_args_and_dict([made[p] for p in parts], facts, **rest)


def _without_videos(kind: Any) -> Any:
    class WithoutVideos(kind):  # type: ignore[misc]
        """The same processor, of which nothing reads videos."""

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            """See that a part is of its class, but for what is left out."""
            if name == VIDEO and argument is None:
                return None
            return super().check_argument_for_proper_class(name, argument)

    WithoutVideos.__name__ = kind.__name__
    return WithoutVideos
