"""Whether a client already has what it asks for."""


def matches(if_none_match: str, digest: str) -> bool:
    """Whether the header names this digest; weak tags compare equal for GET."""
    tags = {tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(",")}
    return digest in tags or "*" in tags
