"""What a body says it is: its type, and that it comes as it is."""

from fastapi import Request

from fimlora_service.errors import UnsupportedMediaType

MAX_NAMED_CHARS = 100


def media_type_of(request: Request, *, allowed: list[str]) -> str:
    """The type of a body, without parameters.

    Raises:
        UnsupportedMediaType: It is none of those allowed, or the body is compressed.
    """
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if media_type not in allowed:
        expected = f"one of {allowed}" if len(allowed) > 1 else allowed[0]
        raise UnsupportedMediaType(
            f"content type {given[:MAX_NAMED_CHARS]!r}; expected {expected}"
        )
    refuse_encoded(request)
    return media_type


def refuse_encoded(request: Request) -> None:
    """Refuse a body that does not come as it is.

    Raises:
        UnsupportedMediaType: It is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"content encoding {encoding[:MAX_NAMED_CHARS]!r}; send it plain"
        )
