"""What Redis answers, read the same way whether a client decodes its answers or not."""


def text_of(value: object) -> str:
    """An answer as text; redis-py allows for more types than its commands have."""
    return value.decode() if isinstance(value, bytes) else str(value)


def as_ms(time: tuple[int, int]) -> int:
    """What TIME returned, in milliseconds."""
    seconds, microseconds = time
    return int(seconds) * 1000 + int(microseconds) // 1000
