"""What a calibration run records on request, beyond the energies of its estimator."""

from collections.abc import Collection
from enum import StrEnum

from torch import nn

from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.targets import base_model_of


class Record(StrEnum):
    """What `fimlora.measure` records on request."""

    SPECTRA = "spectra"
    """The leading singular values of each module's mean weight gradient (experimental)."""
    MOMENTS = "moments"
    """The second moments of each module's input features."""
    BATCH_ENERGIES = "batch_energies"
    """Row energies of each batch's weight gradient: what ``sampled`` expects over the random A."""


def parse_record(record: str | Collection[str]) -> frozenset[Record]:
    """Read a request.

    Args:
        record: One name or several.

    Returns:
        What to record.

    Raises:
        InvalidOption: A name is not known.
    """
    names = {record} if isinstance(record, str) else set(record)
    if unknown := sorted(names - set(Record)):
        allowed = ", ".join(repr(str(name)) for name in Record)
        raise InvalidOption(f"record={unknown[0]!r}; allowed are {allowed}")
    return frozenset(map(Record, names))


def check_record(record: frozenset[Record], model: nn.Module) -> None:
    """Refuse to record what would be wrong for a model.

    Args:
        record: What to record.
        model: The model, wrapped by PEFT or not.

    Raises:
        UnsupportedModule: Moments are wanted of an encoder-decoder.
    """
    base = base_model_of(model)
    is_encoder_decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    if is_encoder_decoder and Record.MOMENTS in record:
        raise UnsupportedModule(
            f"record='moments' leaves out padding by one attention mask, and {type(base).__name__} "
            "has tokens of two kinds; record='spectra' is allowed"
        )
