"""From values to places on a picture, and where its ticks are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """A straight piece of a picture that stands for an interval of values.

    Attributes:
        low: Value at the start.
        high: Value at the end.
        start: Place of the start.
        end: Place of the end.
        is_log: Whether equal ratios are equally long.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, rounded to what can be seen."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        part = (self._scaled(value) - low) / (high - low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, n: int = 5) -> list[float]:
        """Round values within the interval, about as many as wanted."""
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / n))
        step *= min((1, 2, 5, 10), key=lambda factor: abs(span / (step * factor) - n))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def axis_for(
    values: Iterable[float],
    *,
    start: float,
    end: float,
    is_log: bool = False,
    margin: float = 0.06,
) -> Axis:
    """An axis that holds all values with a margin; of one value it makes an interval."""
    every = list(values)
    low, high = min(every), max(every)
    if is_log:
        room = (high / low) ** margin if high > low else 2.0
        return Axis(low / room, high * room, start, end, is_log=True)
    room = (high - low) * margin if high > low else abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)
