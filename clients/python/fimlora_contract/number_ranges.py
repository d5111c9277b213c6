"""Numbers such as those of experts, written short."""

from collections.abc import Sequence


def as_ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as a range: ``0-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
