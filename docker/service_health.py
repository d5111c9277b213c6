"""Exit with 0 when the API of this container is ready, else say in a sentence what is not."""

import json
import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000/readyz"
OK = "ok"


def problem(url: str, *, timeout_s: float = 4.0) -> str | None:
    """What is wrong, or ``None`` when the API is ready."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):  # noqa: S310 - our own address
            return None
    except urllib.error.HTTPError as refused:
        with refused:
            return f"not ready (status {refused.code}): {_named(refused.read())}"
    except (OSError, ValueError) as error:
        return f"the API does not answer: {getattr(error, 'reason', error)}"


def _named(body: bytes) -> str:
    """The checks that failed, as the answer names them."""
    try:
        checks = json.loads(body)["checks"].items()
    except (ValueError, LookupError, AttributeError, TypeError):
        return "it does not say why"
    return "; ".join(f"{name}: {found}" for name, found in checks if found != OK)


def main() -> int:
    """Look, say what is wrong, and answer as docker expects."""
    found = problem(sys.argv[1] if len(sys.argv) > 1 else URL)
    if found:
        sys.stderr.write(found + "\n")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())
