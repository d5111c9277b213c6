"""What a job found, and its files."""

import pytest

from fimlora_contract.jobs import JobError


class TestListArtifacts:
    def test_every_file_has_its_link(self, http, job_id, succeed):
        """The same entries as in the result; 409 before there is one."""
        before = http.get(f"/jobs/{job_id}/artifacts")
        succeed(job_id)

        listed = http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]

        assert before.status_code == 409
        assert listed == http.get(f"/v1/jobs/{job_id}/result").json()["artifacts"]
        assert listed[0]["href"] == f"/v1/jobs/{job_id}/artifacts/adapter_config.json"


class TestResult:
    def test_a_result_links_its_artefacts(self, http, job_id, succeed):
        """Links keep the version of the path that was asked."""
        succeed(job_id)

        plain = http.get(f"/jobs/{job_id}/result").json()
        versioned = http.get(f"/v1/jobs/{job_id}/result").json()

        path = f"/jobs/{job_id}/artifacts/adapter_config.json"
        assert plain["artifacts"][0]["href"] == path
        assert versioned["artifacts"][0]["href"] == f"/v1{path}"

    def test_an_unfinished_job_has_none_yet(self, http, job_id):
        """409 with a hint when to come again."""
        answer = http.get(f"/jobs/{job_id}/result")

        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")
        assert "Retry-After" in answer.headers

    def test_a_failed_job_says_why(self, http, job_id, store):
        """The engine's sentence reaches whoever asks for the result."""
        store.start(job_id, 1, worker="w")
        error = JobError(code="numerical_failure", detail="the loss is nan in batch 1 of 8")
        store.fail(job_id, 1, error)

        answer = http.get(f"/jobs/{job_id}/result")

        assert (answer.status_code, answer.json()["code"]) == (409, "job_failed")
        assert "the loss is nan in batch 1 of 8" in answer.json()["detail"]


class TestArtifacts:
    @pytest.fixture
    def url(self, job_id, succeed) -> str:
        succeed(job_id)
        return f"/jobs/{job_id}/artifacts/"

    def test_a_file_is_immutable_under_its_digest(self, http, url):
        """The ETag is the digest, and caches may keep the file for ever."""
        answer = http.get(url + "adapter_config.json", headers={"Range": "bytes=0-1"})

        assert (answer.status_code, answer.content) == (200, b'{"r": 8}')
        assert answer.headers["ETag"] == '"sha256:0"'
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize("tag", ['"sha256:0"', 'W/"sha256:0"', '"x", "sha256:0"', "*"])
    def test_a_copy_that_is_the_same_is_not_sent(self, http, url, tag):
        """304 without a body."""
        answer = http.get(url + "adapter_config.json", headers={"If-None-Match": tag})

        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == '"sha256:0"'

    def test_another_copy_is_replaced(self, http, url):
        """A different tag gets the file."""
        headers = {"If-None-Match": '"sha256:1"'}

        assert http.get(url + "adapter_config.json", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "name",
        ["secret.txt", "statistics.safetensors", "..%2fsecret.txt"],
    )
    def test_only_names_of_the_closed_set_are_found(self, http, url, name):
        """Not what lies beside them, not what the job has not."""
        answer = http.get(url + name)

        assert answer.status_code == 404
        assert answer.json()["code"] in {"artifact_not_found", "not_found"}

    def test_what_is_gone_is_told_from_what_never_was(self, http, url):
        """410 for a file that the record names and nobody has any more."""
        answer = http.get(url + "rank_map.json")

        assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")

    def test_an_unfinished_job_has_none(self, http, body):
        """409, as for the result."""
        id_ = http.post("/calibrate", json=body | {"force": True}).json()["id"]

        assert http.get(f"/jobs/{id_}/artifacts/rank_map.json").status_code == 409


@pytest.mark.parametrize("what", ["result", "artifacts"])
def test_a_result_is_fetched_once(http, job_id, succeed, what):
    """Its tag is its content address; whoever has it is told so without it."""
    result = succeed(job_id)

    first = http.get(f"/jobs/{job_id}/{what}")
    again = http.get(f"/jobs/{job_id}/{what}", headers={"If-None-Match": first.headers["ETag"]})
    other = http.get(f"/jobs/{job_id}/{what}", headers={"If-None-Match": '"sha256:0"'})

    assert first.headers["ETag"] == f'"{result["digest"]}"'
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (other.status_code, other.json()) == (200, first.json())
