"""A budget in one word: every spelling, and that nothing else is one."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fimlora_contract.budgets import SPELLINGS, budget_words, read_budget
from fimlora_contract.requests import PlanRequest

WORDS = {
    "8": {"rank": 8},
    " 8 ": {"rank": 8},
    "rank:8": {"rank": 8},
    "250k": {"parameters": 250_000},
    "250K": {"parameters": 250_000},
    "8M": {"parameters": 8_000_000},
    "1.5m": {"parameters": 1_500_000},
    "2G": {"parameters": 2_000_000_000},
    "8_000_000": {"parameters": 8_000_000},
    "1_000": {"parameters": 1_000},
    "parameters:2000000": {"parameters": 2_000_000},
    "parameters:2M": {"parameters": 2_000_000},
    "1%": {"fraction": 0.01},
    "0.1 %": {"fraction": 0.001},
    "fraction:0.01": {"fraction": 0.01},
    "fraction:.5": {"fraction": 0.5},
    "fraction:1": {"fraction": 1.0},
    "64MB": {"bytes": 64_000_000},
    "64 mb": {"bytes": 64_000_000},
    "0.5kB": {"bytes": 500},
    "64MiB": {"bytes": 64 * 2**20},
    "1GiB": {"bytes": 2**30},
    "bytes:8000000": {"bytes": 8_000_000},
}
NO_WORDS = [
    "", "x", "eight", "-8", "+8", "8.5", "1e6", "nan", "inf", "8,000,000", "8_00", "_8", "1__000",
    "8T", "1B", "8MM", "%", "M", "0.0001k", "rank:8M", "bytes:1%", "fraction:64MB", "ranks:8",
    "8;", "8\n9", "9" * 16, "9" * 100_000, "1_000_000_000_000_000", "0x8", "\N{ARABIC-INDIC DIGIT EIGHT}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "fields"), WORDS.items(), ids=WORDS)
def test_a_word_means_one_unit_and_amount(text, fields):
    """And a request that has the word is the one that has the fields."""
    assert read_budget(text) == fields
    assert PlanRequest(budget=text) == PlanRequest(budget=fields)


@pytest.mark.parametrize("text", NO_WORDS, ids=lambda text: repr(text[:24]))
def test_nonsense_is_refused_with_the_spellings(text):
    """Never taken for something near it."""
    with pytest.raises(ValueError, match="write ") as refused:
        read_budget(text)

    assert SPELLINGS in str(refused.value)


@pytest.mark.parametrize("budget", ["8000000", 8_000_000, "rank:5000"])
def test_a_number_alone_that_is_no_mean_rank_says_how_to_write_parameters(budget):
    """As text and as an integer, which mean the same."""
    with pytest.raises(ValidationError, match="at most 4096; parameters are written 250k, 8M"):
        PlanRequest(budget=budget)


@pytest.mark.parametrize("text", ["150%", "fraction:2"])
def test_more_than_the_whole_base_model_is_no_budget(text):
    """A share is at most 1, however it is written."""
    with pytest.raises(ValueError, match="more than 100% of the base model"):
        read_budget(text)


@given(st.text(max_size=80))
def test_any_text_is_a_budget_or_refused(text):
    """Never by another exception, and never as two units."""
    with suppress(ValueError):
        assert len(read_budget(text)) == 1


@given(st.integers(1, 10**13))
def test_grouped_digits_are_the_number_of_parameters(amount):
    """Whatever Python prints with underscores is read back, if it has any."""
    unit = "parameters" if amount > 999 else "rank"
    assert read_budget(f"{amount:_}") == {unit: amount}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8", "mean rank 8"),
        ("250k", "250,000 parameters"),
        ("1%", "1 % of the base model's parameters"),
        ("0.25%", "0.25 % of the base model's parameters"),
        ("64MB", "64,000,000 bytes of A and B"),
    ],
)
def test_a_budget_is_said_with_the_unit_that_was_understood(text, words):
    """So that one sees it before anything is measured."""
    assert budget_words(read_budget(text)) == words
