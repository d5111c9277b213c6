"""POST /calibrate with ``validate_only``."""


def test_a_validated_request_leaves_no_job(http, body, redis_client):
    """200 with the estimate; the key is not used up, whatever it belongs to."""
    only = body | {"validate_only": True}
    headers = {"Idempotency-Key": "k"}

    checked = http.post("/calibrate", json=only, headers=headers)

    assert set(redis_client.keys()) <= {b"fimlora:rebuilt"}  # a mark of the service's own
    assert (checked.status_code, checked.json()["object"]) == (200, "estimate")
    assert checked.json() == http.post("/estimate", json=body).json()
    assert http.post("/calibrate", json=body, headers=headers).status_code == 202
    assert http.post("/calibrate", json=only, headers=headers).status_code == 200


def test_a_wrong_request_is_refused_without_a_job_too(http, body):
    """With the status that the real one would have."""
    answer = http.post("/calibrate", json=body | {"validate_only": True, "base_model": "none"})

    assert (answer.status_code, answer.json()["code"]) == (424, "model_not_found")


def test_the_flag_is_not_part_of_the_job(http, body, store):
    """The record has what is to be calibrated, not how it was asked for."""
    job = http.post("/calibrate", json=body | {"validate_only": False}).json()

    assert "validate_only" not in store.get(job["id"]).request
