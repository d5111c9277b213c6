"""A request that is refused before anything is queued."""

from typing import Any

import pytest


@pytest.fixture
def refuse(http, body):
    """Post a changed request, expect a refusal, return its code and sentence."""

    def post(**change: Any) -> tuple[str, str]:
        answer = http.post("/calibrate", json=body | change)
        assert 400 <= answer.status_code < 500, answer.text
        assert http.get("/jobs").json()["data"] == []
        return answer.json()["code"], answer.json()["detail"]

    return post
