"""What images and sounds of a row add to its tokens, as far as a model's configuration tells.

What stands for them in the text counts towards ``max_length``, as a worker refuses a row that is
longer. Beside that, a tower runs through their patches or frames, which are more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

IMAGE, AUDIO = "image", "audio"
MOST = 1 << 20  # no honest configuration has as many positions for one
FRAMES_PER_POSITION = 2  # what reads sounds halves their frames first


@dataclass(frozen=True, slots=True)
class Shown:
    """Beside the text of a row.

    Attributes:
        positions: Of one image and one sound, in the tower that reads it.
        note: What is counted of them and what is not; ``None`` where there are none.
    """

    positions: int = 0
    note: str | None = None


def shown_in(config: Mapping[str, Any], media: Collection[str]) -> Shown:
    """What one image and one sound of a row take.

    Args:
        config: The content of a ``config.json``.
        media: Kinds of what the rows show besides text.
    """
    counted, notes = 0, []
    for kind in sorted(media):
        found, said = (_image if kind == IMAGE else _sound)(config)
        counted += found
        notes.append(said)
    return Shown(counted, "; ".join(notes) or None)


def shown_unread(config: Mapping[str, Any], named: Collection[str]) -> Shown:
    """What rows may take that are not here yet: those of a hub are read by the job.

    Args:
        config: The content of a ``config.json``.
        named: Kinds whose columns a request names.
    """
    found = shown_in(config, named)
    parts = {IMAGE: "vision", AUDIO: AUDIO}
    others = [kind for kind, part in parts.items() if kind not in named and _part(config, part)]
    if not others:
        return found
    what = " or ".join({IMAGE: "images", AUDIO: "sounds"}[kind] for kind in others)
    said = (
        f"rows of the hub are not read before the job, and {what} among them are counted as no more "
        "than the tokens in max_length; a column of them that is named (--column images=..., --column "
        "audio=...) is counted"
    )
    return Shown(found.positions, "; ".join(filter(None, (found.note, said))))


def _image(config: Mapping[str, Any]) -> tuple[int, str]:
    part = _part(config, "vision")
    size, patch = _sides(part.get("image_size")), _sides(part.get("patch_size"))
    n = _n_patches(size, patch)
    if not 0 < n <= MOST:
        return 0, (
            "images are counted as the tokens in max_length that stand for them: what their patches "
            "take beside these depends on their size, which no configuration tells, and the worker "
            "counts it once it has read them"
        )
    return n, (
        f"one image of a row is counted, as {n} patches (image_size {_said(size)}, patch_size "
        f"{_said(patch)}) beside "
        "max_length; each further image, and each tile that one is cut into, takes as many more"
    )


def _n_patches(size: tuple[int, int], patch: tuple[int, int]) -> int:
    if not all(patch):
        return 0
    return (size[0] // patch[0]) * (size[1] // patch[1])


def _sides(value: Any) -> tuple[int, int]:
    """Height and width of what is a number, a list of one or both, or both by name; or 0."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    if not isinstance(value, list):
        value = [value]
    if not 1 <= len(value) <= 2:
        return 0, 0
    return _number(value[0]), _number(value[-1])


def _said(sides: tuple[int, int]) -> str:
    height, width = sides
    return str(height) if height == width else f"{height} x {width}"


def _sound(config: Mapping[str, Any]) -> tuple[int, str]:
    n = _number(_part(config, AUDIO).get("max_source_positions")) * FRAMES_PER_POSITION
    if not 0 < n <= MOST:
        return 0, (
            "sounds are counted as the tokens in max_length that stand for them: what their frames "
            "take beside these depends on how long they last, and the worker counts it once it has "
            "read them"
        )
    return n, (
        f"one sound of a row is counted, as {n} frames beside max_length; each further one takes as "
        "many more"
    )


def _part(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The configuration of a tower, in another part or not."""
    inside = [config.get("thinker_config"), config]
    for outer in inside:
        if isinstance(outer, Mapping) and isinstance(
            found := outer.get(f"{kind}_config"), Mapping
        ):
            return found
    return {}


def _number(value: Any) -> int:
    """A whole number above 0, or 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
