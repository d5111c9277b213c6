"""Figures that pages quote are those that the benchmarks printed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = (ROOT / "benchmarks/README.md").read_text("utf-8")
# Decimals, and whole numbers with commas: 1.03, 100,000.
FIGURE = re.compile(r"(?<![\w.,])\d+(?:\.\d+|(?:,\d{3})+)(?![\w.]*\d)")
QUOTING = ("docs/explanation/cost.md",)


def rows_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and figures of each row of a table."""
    for line in text.splitlines():
        if line.startswith("|"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            yield name, [cell for cell in cells if FIGURE.fullmatch(cell)]


def lacks(text: str) -> list[str]:
    """Figures of a page, and rows of its tables, that no benchmark printed."""
    known = set(FIGURE.findall(BENCHMARKS))
    printed = list(rows_of(BENCHMARKS))
    odd = [figure for figure in FIGURE.findall(text) if figure not in known]
    for name, figures in rows_of(text):
        same = (row for other, row in printed if other == name)
        if figures and not any(is_within(figures, row) for row in same):
            odd.append(f"{name}: {figures}")
    return odd


def is_within(figures: list[str], row: list[str]) -> bool:
    """Whether a row has these figures in this order, others between them or not."""
    rest = iter(row)
    return all(figure in rest for figure in figures)


@pytest.mark.parametrize("page", QUOTING)
def test_a_page_quotes_what_benchmarks_printed(page):
    """Every figure, and every row as one row of the same name."""
    text = (ROOT / page).read_text("utf-8")

    assert len(FIGURE.findall(text)) > 10
    assert not lacks(text)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("It takes 7.77 s.", "7.77"),
        ("| `sampled` | 1.07 | 1.82 | 1.03 |", "`sampled`: ['1.07', '1.82', '1.03']"),
        ("| `exact` | 1.03 | 1.88 | 1.00 |", "`exact`: ['1.03', '1.88', '1.00']"),
    ],
    ids=["a figure", "another row", "the row of another way"],
)
def test_figures_that_no_benchmark_printed_are_found(wrong, named):
    assert named in lacks(wrong)
