"""What the headers of a request say: of its body, of the answer it wants, of the copy it has."""

from collections.abc import Sequence

from fastapi import Request

from fimlora_service.errors import UnsupportedMediaType

MAX_NAMED_CHARS = 100
LONGEST_WAIT_S = 60
RETRY_AFTER_S = 2  # when to look at a job again


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


def quality_of(accept: str, names: Sequence[str]) -> float:
    """How much a client likes a type, from 0 (not at all) to 1.

    Args:
        accept: The header's value.
        names: What the type may be called, the most specific name first: it decides.
    """
    qualities = dict(map(_read_entry, accept.split(",")))
    return next((qualities[name] for name in names if name in qualities), 0.0)


def _read_entry(entry: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in entry.split(";"))
    weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, min(max(float(weight), 0.0), 1.0)
    except ValueError:
        return name, 1.0


def wait_preference(headers: Sequence[str]) -> int | None:
    """Seconds a client wants to wait, at most a minute; what is not understood is ignored.

    Args:
        headers: The values of all ``Prefer`` headers of a request.
    """
    seconds = _preference(headers, "wait") or ""
    is_number = seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
    return min(int(seconds), LONGEST_WAIT_S) if is_number else None


def wants_minimal(headers: Sequence[str]) -> bool:
    """Whether a client prefers a short answer to a whole one.

    Args:
        headers: The values of all ``Prefer`` headers of a request.
    """
    return _preference(headers, "return") == "minimal"


def _preference(headers: Sequence[str], wanted: str) -> str | None:
    """The value of a preference; of several of that name the first one counts."""
    for preference in ",".join(headers).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == wanted:
            return value.strip().strip('"')
    return None


def has_copy(request: Request, tag: str) -> bool:
    """Whether the client has what a tag stands for; weak tags compare equal for GET."""
    listed = request.headers.get("if-none-match", "").split(",")
    tags = {entry.strip().removeprefix("W/").strip('"') for entry in listed}
    return tag in tags or "*" in tags
