"""One family of each kind, in full; `make families` does the same with all of them."""

import re
from pathlib import Path

import pytest
import transformers

from families.checks import check_family
from families.page import PAGE, known, page
from families.registry import FAMILIES
from families.run import check_all

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
# Each is here for what it has and the others have not.
REPRESENTATIVE = [
    "llama/classification",  # a decoder, with a head drawn anew
    "gpt2/causal_lm",  # Conv1D
    "gemma2/causal_lm",  # local and global attention in turn, logits that are capped
    "modernbert-decoder/causal_lm",  # a configuration that must have padding
    "qwen3_moe/causal_lm",  # shared and dense layers beside fused experts
    "bert/classification",  # a pooler drawn anew
    "phi3/classification",  # reads padding in its rotary factors
    "falcon_mamba/causal_lm",  # a state space
    "llava/vision_text",  # an eye that text does not run through
    "nystromformer/classification",  # reads padding
    "t5/seq2seq_lm",  # a decoder of its own
]


@pytest.fixture(autouse=True)
def quiet():
    """Loading draws no progress bars."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.mark.filterwarnings("ignore")  # those of the models, which run() does not show either
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_family_is_right_or_refused_by_name(name, tmp_path):
    """Measured as autograd, streamed as resident, adapted by PEFT as planned."""
    found = check_family(FAMILIES[name], tmp_path)

    assert not found.is_wrong, found.not_right()
    assert found.verdicts["autograd"] == "right"
    assert found.targets > 3


def test_a_family_of_each_kind_is_run_in_a_process_of_its_own():
    """What the runner does for all; a result comes back whole."""
    (found,) = check_all([FAMILIES["llama/causal_lm"]])

    assert found.is_right, found.not_right()


def test_the_page_has_a_row_for_every_family_and_for_no_other():
    """Run `make families` and commit what it writes."""
    said = PAGE.read_text(encoding="utf-8")

    rows = re.findall(r"^\| `([^`]+)`(?: \*[pr]\*)* \|", said, flags=re.MULTILINE)
    assert rows == list(FAMILIES)
    assert said == page(list(known().values()))


def test_the_page_was_made_with_the_pinned_versions():
    """Another release of transformers, torch or PEFT may do better or worse."""
    said, pins = PAGE.read_text(encoding="utf-8"), CONSTRAINTS.read_text(encoding="utf-8")

    for name, package in {
        "transformers": "transformers",
        "torch": "torch",
        "PEFT": "peft",
    }.items():
        pinned = re.search(rf"^{package}==([\d.]+)", pins, flags=re.MULTILINE)
        assert pinned is not None
        assert f"{name} {pinned[1]}" in said
