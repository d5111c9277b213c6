"""Three pictures: differences with their intervals, learning curves, tuning of the rate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fimlora_worker.evaluation.report.axis import Axis, axis_for
from fimlora_worker.evaluation.report.marks import (
    Point,
    area,
    dot,
    line,
    number,
    path,
    signed,
    text,
)
from fimlora_worker.evaluation.report.style import N_COLOURS
from fimlora_worker.evaluation.settings import CONTROLS

Data = Mapping[str, Any]
WIDTH = 760
LEFT, RIGHT = 64, 150  # room for numbers, and for names at the end of lines
NAMES, NUMBERS = 235, 165  # room beside intervals
ROW = 30
PLOT_HEIGHT = 280


def colour_of(data: Data, arm: str) -> int:
    """The number of an arm's colour: the controls have the first two wherever they stand."""
    if arm in CONTROLS:
        return CONTROLS.index(arm)
    measured = [each["name"] for each in data["arms"] if each["name"] not in CONTROLS]
    n_controls = len(CONTROLS)
    return n_controls + measured.index(arm) % (N_COLOURS - n_controls)


def forest(data: Data, metric: str) -> tuple[str, int]:
    """Differences of a metric to both controls, with 95 % intervals; marks and height."""
    found = [d for d in data["differences"] if d["metric"] == metric]
    if not found:
        return text((0, 16), "No difference is known.", "quiet"), 24
    ends = [0.0, *(d["low"] for d in found), *(d["high"] for d in found)]
    axis = axis_for(ends, start=NAMES, end=WIDTH - NUMBERS)
    bottom = 12 + ROW * len(found)
    marks = [*_grid(axis, 4, bottom), line((axis.at(0), 4), (axis.at(0), bottom), "zero")]
    for place, difference in enumerate(found):
        marks += _interval(data, difference, axis, 12 + ROW * (place + 0.5))
    return "".join(marks), bottom + 24


def _grid(axis: Axis, top: float, bottom: float) -> Iterator[str]:
    for tick in axis.ticks():
        x = axis.at(tick)
        yield line((x, top), (x, bottom), "rule")
        yield text((x, bottom + 18), number(tick), "quiet", "middle")


def _interval(data: Data, difference: Data, axis: Axis, y: float) -> list[str]:
    colour = colour_of(data, difference["arm"])
    low, high = axis.at(difference["low"]), axis.at(difference["high"])
    half = (difference["high"] - difference["low"]) / 2
    value = f"{signed(difference['mean'])} \N{PLUS-MINUS SIGN} {half:.4f}"
    return [
        text((0, y + 4), difference["arm"], f"name{colour}"),
        text((NAMES - 15, y + 4), f"\N{MINUS SIGN} {difference['reference']}", "quiet", "end"),
        line((low, y), (high, y), f"solid{colour}"),
        line((low, y - 5), (low, y + 5), f"solid{colour}"),
        line((high, y - 5), (high, y + 5), f"solid{colour}"),
        dot((axis.at(difference["mean"]), y), f"dot{colour}", 5),
        text((WIDTH, y + 4), value, anchor="end"),
    ]


def curves(data: Data) -> tuple[str, int]:
    """Held-out loss by step, mean and standard deviation over the final seeds."""
    series = {
        arm["name"]: [(float(step), loss, spread or 0.0) for step, loss, spread in arm["curve"]]
        for arm in data["arms"]
        if arm["curve"]
    }
    if not series:
        return text((0, 16), "No run was tested.", "quiet"), 24
    every = [point for points in series.values() for point in points]
    x = axis_for([p[0] for p in every], start=LEFT, end=WIDTH - RIGHT)
    y = axis_for(
        [p[1] + sign * p[2] for p in every for sign in (-1, 1)], start=PLOT_HEIGHT, end=8
    )
    marks = [*_frame(x, y, sorted({p[0] for p in every}), "step")]
    for name, points in series.items():
        marks += _curve(points, x, y, colour_of(data, name))
    ends = {name: (x.at(p[-1][0]), y.at(p[-1][1])) for name, p in series.items()}
    return "".join([*marks, *_names(data, ends)]), PLOT_HEIGHT + 44


def _curve(
    points: Sequence[tuple[float, float, float]], x: Axis, y: Axis, colour: int
) -> list[str]:
    upper = [(x.at(step), y.at(mean + spread)) for step, mean, spread in points]
    lower = [(x.at(step), y.at(mean - spread)) for step, mean, spread in reversed(points)]
    middle = [(x.at(step), y.at(mean)) for step, mean, _ in points]
    return [
        area([*upper, *lower], f"band{colour}"),
        path(middle, f"line{colour}"),
        *(dot(place, f"dot{colour}", 3) for place in middle),
    ]


def rates(data: Data) -> tuple[str, int]:
    """Tuning loss by learning rate; a ring is round each arm's best."""
    series = {
        arm["name"]: [(r["rate"], r["loss"]) for r in arm["rates"] if r["loss"] is not None]
        for arm in data["arms"]
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return text((0, 16), "Every tuning run diverged.", "quiet"), 24
    every = [point for points in series.values() for point in points]
    x = axis_for([p[0] for p in every], start=LEFT, end=WIDTH - RIGHT, is_log=True)
    y = axis_for([p[1] for p in every], start=PLOT_HEIGHT, end=8)
    marks = [*_frame(x, y, sorted({p[0] for p in every}), "learning rate")]
    best = {arm["name"]: arm["best_rate"] for arm in data["arms"]}
    for name, points in series.items():
        colour = colour_of(data, name)
        marks.append(path([(x.at(rate), y.at(loss)) for rate, loss in points], f"line{colour}"))
        marks += [
            dot((x.at(rate), y.at(loss)), f"dot{colour}", 5.5 if rate == best[name] else 2.5)
            for rate, loss in points
        ]
    ends = {name: (x.at(p[-1][0]), y.at(p[-1][1])) for name, p in series.items()}
    return "".join([*marks, *_names(data, ends)]), PLOT_HEIGHT + 44


def _frame(x: Axis, y: Axis, steps: Sequence[float], title: str) -> Iterator[str]:
    for tick in y.ticks():
        yield line((x.start, y.at(tick)), (x.end, y.at(tick)), "rule")
        yield text((x.start - 8, y.at(tick) + 4), number(tick), "quiet", "end")
    for tick in steps:
        yield text((x.at(tick), PLOT_HEIGHT + 18), number(tick), "quiet", "middle")
    yield text((x.end, PLOT_HEIGHT + 38), title, "quiet", "end")


def _names(data: Data, ends: Mapping[str, Point], gap: float = 16) -> Iterator[str]:
    """Names at the ends of lines, moved apart where they would cover each other."""
    lowest = -gap
    placed: dict[str, float] = {}
    for name, (_, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        lowest = placed[name] = max(y, lowest + gap)
    over = max(0.0, lowest - PLOT_HEIGHT)
    for name, y in placed.items():
        colour = colour_of(data, name)
        yield text((ends[name][0] + 12, y - over + 4), name, f"name{colour}")
