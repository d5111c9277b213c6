"""The short form of `make fuzz`: requests made from the API's description."""

import pytest

from fuzz.api.fuzzing import fuzz


@pytest.mark.slow
def test_every_answer_is_documented_and_none_is_a_fault_of_the_service(tmp_path):
    """Hundreds of cases, the same ones each time, sequences among them."""
    outcome = fuzz(cases=500, folder=tmp_path, thorough=False)

    assert outcome.faults == [], outcome.report
    assert outcome.n_cases >= 500
