"""References to base models and datasets: tagged unions, never free paths.

A hub reference is ``namespace/name``; anything local must have been registered by the
operator under a plain name. No reference can spell a path or a URL, so none can make the
service read a file or open a connection that the operator did not offer.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from fimlora_contract.base import RequestModel, json_kind

HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
PIN = f"{NAME[:-1]}:{NAME[1:]}"
REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
UPLOAD_ID = r"^ds_[0-9a-f]{32}$"
MAX_INLINE_ROWS = 2_000
_WORD = "starting with a letter or digit, then letters, digits, '.', '_' and '-', 96 at most"
# What each pattern asks for, as nobody should have to read it.
PATTERN_MEANINGS = {
    HUB_ID: f"must be namespace/name, each {_WORD}",
    NAME: f"must be a plain name, not a path: {_WORD}",
    REVISION: (
        "must be a branch, tag or commit: starting with a letter or digit, then letters, "
        "digits, '.', '_', '/' and '-', 128 at most"
    ),
    UPLOAD_ID: "must be the id of an upload: ds_ and 32 hexadecimal digits",
}

HubId = Annotated[str, Field(pattern=HUB_ID)]
Name = Annotated[str, Field(pattern=NAME)]
Revision = Annotated[str, Field(pattern=REVISION)]


class HubModel(RequestModel):
    """A model repository on the hub, resolved to a commit when the job is accepted."""

    source: Literal["hub"] = "hub"
    id: HubId
    revision: Revision = "main"


class LocalModel(RequestModel):
    """A model folder that the operator registered under a name."""

    source: Literal["local"] = "local"
    name: Name


class Columns(RequestModel):
    """Which columns to read; those left out are found by their usual names.

    An empty name leaves a column of ``tools``, ``system``, ``input``, ``images`` or ``audio``
    alone.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    tools: str | None = None
    system: str | None = None
    instruction: str | None = None
    input: str | None = None
    images: str | None = None
    audio: str | None = None


class HubDataset(RequestModel):
    """A dataset repository on the hub, resolved to a commit when the job is accepted."""

    source: Literal["hub"] = "hub"
    id: HubId
    revision: Revision = "main"
    config: Name | None = None
    split: Name = "train"
    columns: Columns = Columns()


class UploadedDataset(RequestModel):
    """Rows uploaded earlier with POST /datasets."""

    source: Literal["upload"] = "upload"
    id: Annotated[str, Field(pattern=UPLOAD_ID)]
    columns: Columns = Columns()


class InlineDataset(RequestModel):
    """Rows carried by the request itself; meant for tests and small probes."""

    source: Literal["inline"] = "inline"
    rows: Annotated[list[dict[str, JsonValue]], Field(min_length=1, max_length=MAX_INLINE_ROWS)]
    columns: Columns = Columns()


class LocalDataset(RequestModel):
    """A dataset file or folder that the operator registered under a name."""

    source: Literal["local"] = "local"
    name: Name
    columns: Columns = Columns()


MODEL_SOURCES = ("hub", "local")
DATASET_SOURCES = ("hub", "upload", "inline", "local")
# What an object without a source is, by a field that one alone has; and what each looks like.
SOURCE_OF = {"rows": "inline", "id": "hub", "revision": "hub", "split": "hub", "name": "local"}
SHAPES = {
    "inline": ("rows", '[{"text": "..."}, ...]'),
    "hub": ("id", '"namespace/name"'),
    "upload": ("id", '"ds_..."'),
    "local": ("name", '"a-registered-name"'),
}


def _split_hub(text: str) -> dict[str, Any]:
    """``ns/name@revision`` as the fields of a hub reference."""
    id_, _, revision = text.partition("@")
    return {"source": "hub", "id": id_} | ({"revision": revision} if revision else {})


def expand_model(value: Any) -> Any:
    """Turn the short form of a model reference into its tagged form.

    Raises:
        ValueError: It is neither text nor an object with a known source.
    """
    if not isinstance(value, str):
        return _check_source(value, MODEL_SOURCES, short="namespace/name or a registered name")
    if value.startswith("local:"):
        return {"source": "local", "name": value.removeprefix("local:")}
    if "/" in value:
        return _split_hub(value)
    return {"source": "local", "name": value}


def expand_dataset(value: Any) -> Any:
    """Turn the short form of a dataset reference into its tagged form.

    Raises:
        ValueError: It is neither text nor an object with a known source.
    """
    if not isinstance(value, str):
        return _check_source(
            value, DATASET_SOURCES, short="namespace/name, a registered name or an upload's id"
        )
    if value.startswith("upload:"):
        return {"source": "upload", "id": value.removeprefix("upload:")}
    if value.startswith("ds_") and "/" not in value:
        return {"source": "upload", "id": value}
    if value.startswith("local:"):
        return {"source": "local", "name": value.removeprefix("local:")}
    if "/" in value:
        return _split_hub(value)
    return {"source": "local", "name": value}


def _check_source(value: Any, sources: tuple[str, ...], *, short: str) -> Any:
    if isinstance(value, RequestModel):
        return value
    wanted = f"source must be one of {list(sources)}"
    if not isinstance(value, dict):
        raise ValueError(
            f"must be text ({short}) or an object whose {wanted}; it is {json_kind(value)}"
            f"{_shape(['rows'] if isinstance(value, list) else [], sources)}"
        )
    if "source" not in value:
        raise ValueError(f"has no source; {wanted}{_shape(value, sources)}")
    if value["source"] not in sources:
        raise ValueError(f"{wanted}{_shape(value, sources)}")
    return value


def _shape(value: Any, sources: tuple[str, ...]) -> str:
    """The form that was meant, by the fields that were given; nothing where none tells."""
    is_upload = isinstance(value, dict) and str(value.get("id", "")).startswith("ds_")
    meant = next((source for field, source in SOURCE_OF.items() if field in value), None)
    meant = "upload" if meant == "hub" and is_upload else meant
    if meant not in sources:
        return ""
    field, example = SHAPES[meant]
    return f'; give {{"source": "{meant}", "{field}": {example}}}'


ModelReference = Annotated[HubModel | LocalModel, Field(discriminator="source")]
DatasetReference = Annotated[
    HubDataset | UploadedDataset | InlineDataset | LocalDataset, Field(discriminator="source")
]
# The schema names the short forms too: a generated client would not offer them otherwise.
AnyModel = Annotated[
    ModelReference, BeforeValidator(expand_model, json_schema_input_type=str | ModelReference)
]
AnyDataset = Annotated[
    DatasetReference,
    BeforeValidator(expand_dataset, json_schema_input_type=str | DatasetReference),
]
