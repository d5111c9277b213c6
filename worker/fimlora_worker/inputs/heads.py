"""Which head a job's task needs on its base model, and what a checkpoint may leave to chance."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fimlora.model.drawn import is_left_out_of_files
from fimlora_jobs.datasets.columns import Task, TextFields
from fimlora_jobs.models.heads import check_rows, is_encoder_decoder
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_worker.errors import UnsupportedArchitecture
from fimlora_worker.inputs.model_faults import named_as

# The head that a base model lacks is drawn from this seed and no other: neither the
# request nor what ran before may change the scores.
HEAD_SEED = 0
HeadTask = Task | Literal["seq2seq_lm", "multimodal_lm"]
# PEFT's words for the tasks.
TASK_TYPES: dict[HeadTask, str] = {
    "sequence_classification": "SEQ_CLS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "multimodal_lm": "CAUSAL_LM",
}


@dataclass(frozen=True)
class ModelRequest:
    """Everything that makes two loaded models different; a cache key.

    Attributes:
        digest: Content of the model's files.
        device: ``cpu`` or ``cuda``.
        n_outputs: Outputs of a classification head.
        problem_type: Transformers' word for its loss.
    """

    digest: str
    task: HeadTask
    dtype: str
    device: str
    n_outputs: int | None = None
    problem_type: str | None = None


def head_task(config: Any, fields: TextFields, media: Collection[str] = ()) -> HeadTask:
    """What a model does with rows: an encoder-decoder reads a prompt and writes a completion.

    Args:
        config: The model's configuration.
        fields: The columns in use.
        media: Kinds of what the rows show besides text.

    Raises:
        UnsupportedArchitecture: An encoder-decoder is given text that is no such pair.
    """
    raw = config.to_dict() | {"model_type": config.model_type}
    if media:
        return "multimodal_lm"
    if fields.task != "causal_lm" or not is_encoder_decoder(raw):
        return fields.task
    try:
        check_rows(raw, has_completion=bool(fields.completion), is_chat=bool(fields.messages))
    except ModelRefused as error:
        raise UnsupportedArchitecture(str(error)) from error
    return "seq2seq_lm"


def head_class(config: Any, task: HeadTask) -> Any:
    """The auto class with the head that a task needs.

    Raises:
        UnsupportedArchitecture: The architecture has no such head.
    """
    import transformers

    kind = type(config)
    if task == "sequence_classification":
        if kind not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise UnsupportedArchitecture(
                f"{config.model_type} has no sequence classification head in transformers"
            )
        return transformers.AutoModelForSequenceClassification
    if task == "seq2seq_lm":
        if kind not in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            raise UnsupportedArchitecture(
                f"{config.model_type} has no head for sequences to sequences in transformers"
            )
        return transformers.AutoModelForSeq2SeqLM
    if task == "multimodal_lm":
        mapping = _multimodal()
        if kind not in mapping:
            raise UnsupportedArchitecture(
                f"the rows have images or sounds, and {config.model_type} reads text alone; give a "
                "model that sees or hears, or leave their column alone by an empty name "
                "(--column images=)"
            )
        return transformers.AutoModelForMultimodalLM
    is_encoder = kind in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if kind not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or (
        is_encoder and not getattr(config, "is_decoder", False)
    ):
        raise UnsupportedArchitecture(
            f"{config.model_type} is no causal language model; give a dataset with labels to "
            "calibrate it for sequence classification"
        )
    return transformers.AutoModelForCausalLM


def _multimodal() -> Any:
    """Configurations of models that see or hear, and write text.

    Raises:
        UnsupportedArchitecture: This version of transformers has no class for all of them.
    """
    from transformers.models.auto import modeling_auto

    mapping = getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING", None)
    if mapping is None:
        raise UnsupportedArchitecture(
            "this version of transformers is too old for rows with images or sounds; install a "
            "newer one where the worker runs"
        )
    return mapping


def other_class(config: Any, model: Any) -> tuple[Any, Any] | None:
    """The other class that a checkpoint of text and images is loaded as, for generating text.

    Args:
        config: The configuration of the checkpoint.
        model: The model that a job has of it.

    Returns:
        The class, the whole model's for a text model and the text model's for the whole, and
        its configuration; ``None`` where there is no other.
    """
    import transformers

    text = config.get_text_config()
    whole: Any = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    alone: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if text is config or whole is None or alone is None or whole is alone:
        return None
    return {alone: (whole, config), whole: (alone, text)}.get(type(model))


def config_for_head(folder: Path, request: ModelRequest) -> Any:
    """The model's configuration with the outputs that a job's labels need."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, **head_options(request)
    )


def head_options(request: ModelRequest) -> dict[str, Any]:
    """What a configuration must say for a classification head; nothing for other heads."""
    if not request.n_outputs:
        return {}
    return {"num_labels": request.n_outputs, "problem_type": request.problem_type}


def check_complete(model: Any, absent: Collection[str], request: ModelRequest) -> None:
    """Refuse a checkpoint that leaves more than a classification head to chance.

    The engine has seen that the base model is complete.

    Args:
        model: The model, loaded or only built.
        absent: Weights that the checkpoint lacks, or has in another shape.
        request: What was asked for.

    Raises:
        UnsupportedArchitecture: Names them.
    """
    lacking = [name for name in absent if not is_left_out_of_files(model, name)]
    if lacking and not request.n_outputs:
        raise UnsupportedArchitecture(
            f"the checkpoint lacks weights of {type(model).__name__}: {sorted(lacking)[:5]}"
        )


@contextmanager
def named_architecture_errors(config: Any) -> Iterator[None]:
    """Name the architecture when transformers cannot build it, whatever it raises.

    Raises:
        UnsupportedArchitecture: It cannot.
    """
    with named_as(f"transformers cannot load this {config.model_type} model"):
        yield
