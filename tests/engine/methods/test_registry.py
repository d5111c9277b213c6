"""The table of methods: complete, told alike on the wire, and light to ask."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fimlora.errors import InvalidOption
from fimlora.methods.registry import METHODS, needs_null, records_needed
from fimlora.methods.score import SCORERS
from fimlora.scores import RULES
from fimlora_contract.methods import (
    BY_EACH_EXPERT,
    BY_EXAMPLES,
    BY_LAYERS,
    BY_SPECTRA,
    FEWEST_EXAMPLES,
    MethodName,
)


def test_each_method_has_a_scorer_a_rule_and_words():
    """A method that is named can be asked for."""
    assert tuple(SCORERS) == tuple(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.rule in RULES
        assert method.summary
        assert method.source


def test_the_wire_has_the_methods_of_the_engine():
    """In one order, and the same of them may leave modules out."""
    assert get_args(MethodName) == tuple(METHODS)
    assert tuple(n for n, m in METHODS.items() if m.rule == "spectral") == BY_SPECTRA
    assert tuple(n for n, m in METHODS.items() if m.rule == "layers") == BY_LAYERS
    assert tuple(n for n, m in METHODS.items() if m.needs_examples) == BY_EXAMPLES
    assert tuple(n for n, m in METHODS.items() if m.takes_selected_experts) == BY_EACH_EXPERT
    fewest = {n: m.fewest_examples for n, m in METHODS.items() if m.fewest_examples}
    assert fewest == FEWEST_EXAMPLES


@pytest.mark.parametrize("ask", [records_needed, needs_null])
def test_nothing_is_said_of_a_method_that_nobody_knows(ask):
    """All that there are are named."""
    with pytest.raises(InvalidOption, match=f"'best' is unknown.*{', '.join(METHODS)}"):
        ask("best")


def test_several_methods_need_what_each_of_them_needs():
    """One set of passes serves them all."""
    needed = [records_needed(name) for name in METHODS]

    assert records_needed(*METHODS) == frozenset().union(*needed)
    assert records_needed() == frozenset()
    assert needs_null(*METHODS) is any(method.needs_null for method in METHODS.values())
    assert needs_null() is False


def test_asking_what_a_method_needs_loads_no_numpy():
    """A service asks it of every request that it accepts."""
    code = (
        "import sys\nfrom fimlora.methods.registry import records_needed\n"
        "records_needed('spectral')\nsys.exit('numpy' in sys.modules)\n"
    )
    path = str(Path(__file__).parents[3] / "worker")

    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=True)
