"""What is said of the task head that a plan was measured under, in a line."""

from collections.abc import Mapping
from typing import Any


def head_line(head: Mapping[str, Any] | None) -> str:
    """How a new head was made and how well it does; empty for one of the checkpoint.

    Args:
        head: What a rank map's provenance says of it; of no later service than this client.
    """
    match (head or {}).get("kind"):
        case "fitted":
            assert head is not None
            return f"fitted on {head['rows']:,} rows{_how_well(head)}{_left(head)}"
        case "fresh":
            return "as it was drawn, so its feedback is random"
    return ""


def _how_well(head: Mapping[str, Any]) -> str:
    """On rows that it was not fitted on, against a constant prediction."""
    held, constant = head.get("held_out"), head.get("constant")
    if not held or not constant:
        return ", too few to hold some out"
    if "r2" in held:
        return f": R\N{SUPERSCRIPT TWO} {held['r2']:.2f} held out"
    return (
        f": accuracy {held['accuracy']:.2f} held out, "
        f"most frequent class {constant['accuracy']:.2f}"
    )


def _left(head: Mapping[str, Any]) -> str:
    """What else is drawn."""
    left = ", ".join(head.get("left_as_drawn") or ())
    return f"; {left} left as drawn" if left else ""
