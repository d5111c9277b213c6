"""What two requests must have in common to share a result, or statistics."""

from itertools import product

import pytest

from fimlora.adapter.initial.registry import INITS, init_records
from fimlora.methods.registry import METHODS, needs_null, passes_needed, records_needed
from fimlora.statistics.options import Passes
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.request_digest import (
    MEASURED,
    MEASUREMENT,
    PLANNED,
    request_digest,
)


class TestRequestDigest:
    def digest(self, *, rows=None, model="sha256:m", options=None, **change) -> str:
        base = {"base_model": "tiny", "dataset": "local:d", "budget": 8}
        request = CalibrationRequest.model_validate(base | change)
        dataset = {"digest": "sha256:d", "fields": None, "rows": rows}
        return request_digest(request, model_digest=model, dataset=dataset, **(options or {}))

    @pytest.mark.parametrize(
        "change",
        [
            {"metadata": {"a": "b"}},
            {"force": True},
            {"budget": {"rank": 8}},
            {"base_model": "other"},
            {"dataset": "local:e"},
            {"calibration": {"n_batches": 8}},
            {"calibration": {"executor": "streamed"}},
            {"calibration": {"tolerance": 0.1, "max_batches": 32}},
            {"rows": 3},
        ],
        ids=str,
    )
    def test_what_cannot_change_the_result_does_not_count(self, change):
        """Names, notes and spelled-out defaults give the same key."""
        assert self.digest(**change) == self.digest()

    def test_rows_to_retain_are_measured_too(self):
        """Others are another measurement; without any, a digest is as if there could be none."""
        vila = {"allocation": {"method": "vila"}, "retain": "local:kept"}
        fields = {"text": "text"}

        def measured(digest="sha256:kept", fields=None, **change):
            retain = {"digest": digest, "fields": fields, "rows": None}
            options = {"settings": MEASURED, "retain": retain}
            return self.digest(options=options, **vila | change)

        same, other = measured(), measured(budget=9)
        assert same == other
        assert measured("sha256:other") != same
        assert measured(fields=fields) != same
        assert same != self.digest(options={"settings": MEASURED})
        assert self.digest(options={"retain": None}) == self.digest()

    @pytest.mark.parametrize(
        "change",
        [
            {"budget": 9},
            {"budget": {"parameters": 8}},
            {"model": "sha256:n"},
            {"target_modules": "all-linear"},
            {"calibration": {"estimator": "sampled"}},
            {"allocation": {"method": "uniform"}},
            {"adapter": {"weights": True}},
        ],
        ids=str,
    )
    def test_what_can_change_the_result_counts(self, change):
        """Content and settings give another key."""
        assert self.digest(**change) != self.digest()

    @pytest.mark.parametrize(
        "change",
        [
            {"budget": 9},
            {"allocation": {"r_min": 1}},
            {"calibration": {"tolerance": 0.1}},
            {"calibration": {"max_batches": 32}},
        ],
        ids=str,
    )
    def test_rounds_end_by_the_plan_and_so_do_their_statistics(self, change):
        """With a number of batches, other plans share statistics; with auto they do not."""
        auto, options = {"n_batches": "auto"}, {"settings": MEASURED}
        changed = change | {"calibration": auto | change.get("calibration", {})}

        assert self.digest(calibration=auto, options=options) != self.digest(
            **changed, options=options
        )
        assert self.digest(**change, options=options) == self.digest(options=options)

    @pytest.mark.parametrize(
        "settings", [MEASURED, MEASURED | PLANNED], ids=["statistics", "result"]
    )
    def test_what_earlier_code_has_measured_is_not_served(self, settings):
        """An equal request finds neither its statistics nor its result."""
        keys = {
            self.digest(options={"settings": settings, "measurement": version})
            for version in (MEASUREMENT - 1, MEASUREMENT)
        }

        assert len(keys) == 2
        assert self.digest(options={"settings": settings}) in keys


def test_statistics_without_spectra_are_not_taken_for_the_method_spectral():
    """Other methods share one key of the statistics; this one measures more."""
    dataset = {"source": "upload", "digest": "sha256:0", "fields": None}

    def key(method: str, *, signal: bool = True) -> str:
        body = {"base_model": "local:m", "dataset": "ds_" + "0" * 32, "budget": 8}
        body |= {"calibration": {"signal": signal}}
        request = CalibrationRequest.model_validate(body | {"allocation": {"method": method}})
        return request_digest(
            request, model_digest="sha256:1", dataset=dataset, settings=MEASURED
        )

    assert key("fim") == key("random") != key("spectral")
    assert key("fim") == key("fim-over-null")  # the signal measures the null for all
    assert key("fim", signal=False) != key("fim-over-null", signal=False)


def test_initial_weights_share_statistics_that_hold_what_they_are_made_of():
    """Those that are made of nothing share the plain ones; results are always apart."""

    def key(init: str | None, settings: frozenset[str]) -> str:
        body = {"base_model": "local:m", "dataset": "ds_" + "0" * 32, "budget": 8}
        request = CalibrationRequest.model_validate(body | {"adapter": {"init": init}})
        dataset = {"source": "upload", "digest": "sha256:0", "fields": None}
        return request_digest(
            request, model_digest="sha256:1", dataset=dataset, settings=settings
        )

    measured = {init: key(init, MEASURED) for init in (None, *INITS)}

    assert measured[None] == measured["kaiming"] == measured["zeros"]
    assert measured["lora-ga"] == measured["lora-one"]
    assert len({measured[None], measured["lora-one"], measured["gora"]}) == 3
    assert len({key(init, MEASURED | PLANNED) for init in measured}) == len(measured)


def test_requests_that_share_statistics_measure_the_same():
    """Whatever their methods and initial weights: records, passes and null."""
    shared = {}
    for method, init, signal in product(METHODS, INITS, (True, False)):
        request = CalibrationRequest.model_validate(
            {
                "base_model": "tiny",
                "dataset": "local:d",
                "budget": 8,
                "allocation": {"method": method},
                "adapter": {"init": init},
                "calibration": {"signal": signal},
                **({"retain": "local:kept"} if method == "vila" else {}),
            }
        )
        dataset = {"digest": "sha256:d", "fields": None}
        digest = request_digest(
            request, model_digest="sha256:m", dataset=dataset, settings=MEASURED
        )
        measured = (
            records_needed(method) | init_records(init),
            Passes.most([passes_needed(method), Passes.FORWARD]),
            signal or needs_null(method),
        )
        shared.setdefault(digest, set()).add(measured)

    assert len(shared) > len(INITS)
    assert {len(kinds) for kinds in shared.values()} == {1}
