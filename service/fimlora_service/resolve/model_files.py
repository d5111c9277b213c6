"""Base models on disk: check and describe them without loading any.

Only headers are read: ``config.json`` says what the model is, the head of each safetensors
file which weights it has.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fimlora.model.safetensors_header import TensorEntry, read_header
from fimlora_jobs.models.heads import check_native
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_service.errors import ModelNotFound, UnsafeWeights, UnsupportedArchitecture

if TYPE_CHECKING:
    from fimlora_service.resolve.chat_templates import ChatTemplates

MAX_CONFIG_BYTES = 4 << 20
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A base model whose content is pinned.

    Attributes:
        reference: What goes on the job's record.
        config: The model's ``config.json``.
        shapes: Shape of each weight by name.
        sizes: Bytes of each file on the hub that a worker needs; a local model needs none.
        chat_templates: Reads the chat templates of its tokenizer.
    """

    reference: dict[str, Any]
    config: Mapping[str, Any]
    shapes: Shapes
    sizes: Mapping[str, int] = field(default_factory=dict)
    chat_templates: "Callable[[], ChatTemplates]" = field(kw_only=True, compare=False)

    @property
    def digest(self) -> str:
        """Digest of the model's content."""
        return str(self.reference["digest"])

    @property
    def called(self) -> str | None:
        """What adapters call a registered model; empty where nothing is known, not for the hub's."""
        return self.reference["called"] or "" if "called" in self.reference else None


@contextmanager
def permission_errors(where: str) -> Iterator[None]:
    """Files that their owner alone may read are the operator's to mend, not a fault of ours."""
    try:
        yield
    except PermissionError as error:
        raise ModelNotFound(
            f"{where} may not be read by the service's user: {Path(error.filename).name}"
        ) from error


def read_config_file(path: Path, *, where: str) -> dict[str, Any]:
    """A model's ``config.json``, refused when it is unusable or asks for code of its own."""
    if not path.is_file():
        raise UnsupportedArchitecture(f"{where} has no config.json")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UnsupportedArchitecture(
            f"the config.json of {where} is over {MAX_CONFIG_BYTES} bytes"
        )
    try:
        config = json.loads(path.read_bytes())
        json.dumps(config, ensure_ascii=False).encode()  # parts of it are shown in answers
    except PermissionError:
        raise
    except OSError as error:
        raise UnsupportedArchitecture(f"the config.json of {where} cannot be read") from error
    except UnicodeEncodeError as error:
        raise UnsupportedArchitecture(
            f"the config.json of {where} holds half a character (a lone surrogate)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedArchitecture(f"the config.json of {where} is not JSON") from error
    if not isinstance(config, dict):
        raise UnsupportedArchitecture(f"the config.json of {where} is not an object")
    if not isinstance(config.get("model_type"), str):
        raise UnsupportedArchitecture(f"the config.json of {where} names no model_type")
    try:
        check_native(config)
    except ModelRefused as error:
        raise UnsupportedArchitecture(f"{where}: {error}") from error
    return config


def describe_config(config: Mapping[str, Any]) -> dict[str, str | None]:
    """The fields of a configuration that go on record."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    architecture = first if isinstance(first, str) else None
    return {"model_type": config["model_type"], "architecture": architecture}


def weight_entries(folder: Path, *, where: str) -> dict[str, TensorEntry]:
    """What the headers of a folder's safetensors files say of every weight."""
    # A glob finds nothing in a folder that may not be read; this says so.
    files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    if not files:
        others = sorted(p.name for p in folder.glob("*.bin")) or "no weights at all"
        raise UnsafeWeights(f"{where} has no *.safetensors file; it has {others}")
    entries: dict[str, TensorEntry] = {}
    for file in files:
        entries |= read_entries(file, where=where)
    return entries


def read_entries(file: Path, *, where: str) -> Mapping[str, TensorEntry]:
    """What the header of one safetensors file says of its weights."""
    try:
        with file.open("rb") as stream:
            return read_header(stream).tensors
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise UnsafeWeights(
            f"{file.name} of {where} is not a sound safetensors file"
        ) from error
