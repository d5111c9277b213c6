"""How often a key may ask, and how much a tenant may keep."""

import re
import time

import pytest
from redis import Redis

from fimlora_service.app import create_app
from fimlora_service.errors import RateLimited
from fimlora_service.keys.rates import ALL, RateLimits
from fimlora_service.settings import Settings
from support.adapter_files import TAR, as_tar, files_of
from support.keys import OPERATOR
from support.service import ROWS, as_jsonl
from support.testclient import TestClient

JSONL = {"Content-Type": "application/x-ndjson"}
NOWHERE = "redis://127.0.0.1:9/0"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    few = {
        "rate_limit": "5/minute",
        "submit_rate_limit": "2/minute",
        "max_keys_per_tenant": 3,
        "max_stored_bytes_per_tenant": 8000,
    }
    return settings.model_copy(update=few)


class TestRates:
    def test_answers_tell_what_is_left(self, visitor):
        """In the fields of the draft: policy, and how it stands."""
        who = visitor()

        answers = [who("GET", "/jobs") for _ in range(2)]

        for left, answer in zip((4, 3), answers, strict=True):
            assert answer.headers["RateLimit-Policy"] == '"requests";q=5;w=60'
            assert re.fullmatch(rf'"requests";r={left};t=[0-9]+', answer.headers["RateLimit"])

    def test_one_too_many_is_refused_until_later(self, visitor):
        """For that key alone, and with the time after which it may come again."""
        who, other = visitor(), visitor()

        statuses = [who("GET", "/jobs").status_code for _ in range(6)]
        refused = who("GET", "/jobs")

        assert statuses == [200] * 5 + [429]
        assert refused.json()["code"] == "rate_limited"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert '"requests";r=0;' in refused.headers["RateLimit"]
        assert other("GET", "/jobs").status_code == 200

    def test_submissions_have_a_limit_of_their_own(self, visitor, body):
        """Polls go on when it is used up."""
        who = visitor()

        statuses = [who("POST", "/calibrate", json=body).status_code for _ in range(3)]

        assert statuses == [202, 202, 429]
        assert who("GET", "/jobs").status_code == 200

    def test_processes_count_together(self, redis_client):
        """And after the window there is room again."""
        here, there = (RateLimits(redis_client, {ALL: "2/second"}) for _ in range(2))
        began = time.monotonic()

        while True:  # a pause between the first two may end a window
            try:
                for limits in (here, there, here):
                    limits.hit("key", [ALL])
            except RateLimited as refused:
                pause_s = int(refused.headers["Retry-After"])
                break
            assert time.monotonic() - began < 30
        time.sleep(pause_s)

        assert there.hit("key", [ALL])

    def test_guesses_are_limited_by_address(self, http):
        """Good keys from there are let in all the same."""
        wrong = {"Authorization": f"Bearer fl_{'0' * 16}_x"}

        statuses = [http.get("/jobs", headers=wrong).status_code for _ in range(6)]

        assert statuses == [401] * 5 + [429]
        assert http.get("/jobs", headers=OPERATOR).status_code == 200

    def test_without_the_store_this_process_counts(self):
        """No fault of the limit's own, and no way around it."""
        with Redis.from_url(NOWHERE) as away:
            limits = RateLimits(away, {ALL: "2/minute"})
            for _ in range(2):
                limits.hit("key", [ALL])

            with pytest.raises(RateLimited):
                limits.hit("key", [ALL])

    def test_what_needs_no_store_is_answered_without_it(self, settings):
        """With the operator's own key."""
        away = settings.model_copy(update={"redis_url": NOWHERE})
        with TestClient(create_app(away)) as http:
            answer = http.get("/models", headers=OPERATOR)

            assert answer.status_code == 200
            assert answer.headers["RateLimit"].startswith('"requests";r=4;')
            assert http.get("/jobs", headers=OPERATOR).status_code == 503

    def test_nothing_is_limited_before_there_is_a_key(self, settings):
        """Who works alone on his machine may ask as often as he likes."""
        alone = settings.model_copy(update={"admin_key": None})
        with TestClient(create_app(alone)) as http:
            answers = [http.get("/jobs") for _ in range(8)]

        assert {answer.status_code for answer in answers} == {200}
        assert "RateLimit" not in answers[0].headers

    @pytest.mark.parametrize("rate", ["x", "", "0/minute", "-1/minute", "5 a minute or so"])
    def test_what_is_no_rate_is_refused_at_start(self, rate):
        """With what is allowed."""
        with pytest.raises(ValueError, match="600/minute"):
            Settings(rate_limit=rate)

    def test_no_limit_is_a_word(self, settings, monkeypatch):
        """An empty variable is the default, as everywhere."""
        monkeypatch.setenv("FIMLORA_RATE_LIMIT", "none")
        monkeypatch.setenv("FIMLORA_SUBMIT_RATE_LIMIT", "")
        read = Settings.read()
        limits = {"rate_limit": read.rate_limit, "submit_rate_limit": read.submit_rate_limit}
        with TestClient(create_app(settings.model_copy(update=limits))) as http:
            answers = [http.get("/jobs", headers=OPERATOR) for _ in range(8)]

        assert {answer.status_code for answer in answers} == {200}
        assert read.rates == {"submissions": "120/minute"}


class TestQuotas:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"rate_limit": "none", "submit_rate_limit": "none"})

    def test_a_tenant_has_so_many_keys(self, http, visitor):
        """Another one can be made once one was revoked."""
        made = [visitor(tenant="acme") for _ in range(3)]
        one = {"name": "x", "tenant": "acme"}

        refused = http.post("/keys", json=one, headers=OPERATOR)
        http.delete(f"/keys/{made[0].id}", headers=OPERATOR)

        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert "Retry-After" not in refused.headers  # waiting does not help
        assert http.post("/keys", json=one, headers=OPERATOR).status_code == 201
        assert visitor(tenant="globex")

    def test_a_tenant_may_keep_so_many_bytes(self, visitor, data_dir):
        """Of datasets and adapters together; what was refused leaves nothing behind."""
        acme, globex = visitor(tenant="acme"), visitor(tenant="globex")
        adapter = as_tar(files_of())
        first = acme("POST", "/adapters", content=adapter, headers=TAR)
        rows = as_jsonl(ROWS * 20)

        refused = acme("POST", "/datasets", content=rows, headers=JSONL)
        again = acme("POST", "/adapters", content=adapter, headers=TAR)

        assert (first.status_code, again.status_code) == (201, 200)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert "Retry-After" not in refused.headers
        assert not list((data_dir / "tmp").iterdir())
        assert globex("POST", "/datasets", content=rows, headers=JSONL).status_code == 201
        acme("DELETE", f"/adapters/{first.json()['id']}")
        assert acme("POST", "/datasets", content=rows, headers=JSONL).status_code == 201

    def test_what_is_made_here_counts_too(self, visitor):
        """A truncated adapter is one more."""
        who = visitor(tenant="acme")
        sent = who("POST", "/adapters", content=as_tar(files_of()), headers=TAR).json()

        made = who("POST", f"/adapters/{sent['id']}/truncate", json={"budget": 2})

        assert made.json()["code"] == "quota_exceeded"
