"""Keys: made, listed, given another secret, revoked; and what is kept of them."""

import shutil
import stat
import time

import pytest

from fimlora_jobs.durability import WRITTEN, owing
from fimlora_jobs.keys import KeyStore, Secret
from fimlora_service.app import create_app
from fimlora_service.keys.pepper import PepperFile
from fimlora_service.keys.ring import KeyRing
from support.keys import ADMIN_KEY, OPERATOR, Visitor
from support.testclient import TestClient

RETRIES = 50
FIRST = {"name": "me", "scopes": ["admin"]}


def bearer(made: dict) -> dict:
    return {"Authorization": f"Bearer {made['key']}"}


def status_of(http, headers) -> int:
    return http.get("/jobs", headers=headers).status_code


def ends(http, visitor: Visitor) -> bool:
    """Whether a key is refused before long: others believe it for a moment."""
    for _ in range(RETRIES):
        if status_of(http, visitor.headers) == 401:
            return True
        time.sleep(0.1)
    return False


class TestMaking:
    def test_a_key_lets_in_and_is_told_once(self, http, visitor):
        """The list has all of it but the secret."""
        made = visitor(name="ci", scopes=["read"])

        assert status_of(http, made.headers) == 200
        listed = http.get("/keys", headers=OPERATOR)
        assert [(key["id"], key["name"], key["scopes"]) for key in listed.json()["data"]] == [
            (made.id, "ci", ["read"])
        ]
        assert made.key.rpartition("_")[2] not in listed.text
        assert made.key not in http.get(f"/keys/{made.id}", headers=OPERATOR).text

    def test_the_answer_is_kept_by_no_cache(self, http):
        """Nor is the key in the address that it names."""
        answer = http.post("/keys", json={"name": "x"}, headers=OPERATOR)

        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Location"] == f"/keys/{answer.json()['id']}"

    def test_only_a_keyed_hash_is_kept(self, visitor, redis_client, data_dir):
        """Neither store nor data folder has the secret; the pepper is for the owner's eyes."""
        made = visitor()
        secret = made.key.removeprefix(f"fl_{made.id}_")
        assert len(secret) == 43

        stored = b"".join(redis_client.dump(key) for key in redis_client.keys("*"))
        assert secret.encode() not in stored
        pepper = data_dir / "keys" / "pepper"
        assert stat.S_IMODE(pepper.stat().st_mode) == 0o600
        assert stat.S_IMODE(pepper.parent.stat().st_mode) == 0o700
        digest = redis_client.hget(f"fimlora:api_key:{made.id}", "digest").decode()
        assert digest == Secret(made.id, made.key).hashed(pepper.read_bytes())
        assert digest != Secret(made.id, made.key).hashed(b"another pepper")

    def test_no_log_line_has_a_key(self, http, visitor, caplog):
        """Neither a good one nor a bad one."""
        caplog.set_level("DEBUG")
        made = visitor()
        made("GET", "/jobs")
        made("POST", f"/keys/{made.id}/rotate", json={})
        wrong = made.key[:-4] + "aaaa"
        http.get("/jobs", headers={"Authorization": f"Bearer {wrong}"})

        assert "key.created" in caplog.text
        lines = [caplog.text, *(str(vars(record)) for record in caplog.records)]
        assert not any(made.key in line or wrong in line for line in lines)

    @pytest.mark.parametrize(
        "change",
        [
            {"name": ""}, {"name": "a/b"}, {"scopes": []}, {"scopes": ["root"]}, {"tenant": ""},
            {"tenant": "A"}, {"tenant": "a:b"}, {"tenant": "-a"}, {"expires_in_s": 0},
            {"key": "mine"},
        ],
    )  # fmt: skip
    def test_a_wrong_request_is_refused(self, http, change):
        """As all bodies are."""
        answer = http.post("/keys", json={"name": "x"} | change, headers=OPERATOR)

        assert answer.status_code == 422

    def test_an_expired_key_is_refused(self, http, visitor):
        """From its time on, by the store's clock."""
        made = visitor(expires_in_s=1)

        assert status_of(http, made.headers) == 200
        assert ends(http, made)

    def test_its_use_is_noted_once_a_minute(self, http, visitor, redis_client):
        """So that polls do not write."""
        made, name = visitor(), "last_used_ms"
        key = f"fimlora:api_key:{made.id}"
        assert redis_client.hget(key, name) is None

        made("GET", "/jobs")
        first = redis_client.hget(key, name)
        keys = KeyStore(http.app_state["store"])
        record, now_ms = keys.find_now(made.id)
        keys.note_use(record, now_ms=now_ms + 59_000)
        assert redis_client.hget(key, name) == first
        keys.note_use(record, now_ms=now_ms + 61_000)
        assert int(redis_client.hget(key, name)) == now_ms + 61_000
        assert http.get(f"/keys/{made.id}", headers=OPERATOR).json()["last_used_at"]

    def test_noting_a_use_brings_no_revoked_key_back(self, visitor, store, redis_client):
        """What is gone stays gone."""
        keys, made = KeyStore(store), visitor()
        record, now_ms = keys.find_now(made.id)
        keys.remove(made.id)

        keys.note_use(record, now_ms=now_ms)

        assert not redis_client.exists(f"fimlora:api_key:{made.id}")

    def test_it_is_told_once_it_is_on_disk(self, store):
        """A new secret of a key that is there likewise."""
        keys, secret = KeyStore(store), Secret.new()
        with owing() as making:
            keys.put(secret, pepper=b"p", name="x", tenant="", scopes=frozenset())
        with owing() as rotating:
            keys.rotate(Secret.new(secret.id), pepper=b"p", grace_ms=0)

        assert (making.until_ms, rotating.until_ms) == (WRITTEN, WRITTEN)


class TestEnding:
    def test_a_revoked_key_is_refused_at_once(self, http, visitor):
        """By the process that was told."""
        made = visitor()
        assert status_of(http, made.headers) == 200

        assert http.delete(f"/keys/{made.id}", headers=OPERATOR).status_code == 204

        assert status_of(http, made.headers) == 401
        assert http.delete(f"/keys/{made.id}", headers=OPERATOR).status_code == 404

    def test_other_processes_refuse_it_before_long(self, http, visitor, settings):
        """They believe a key for a moment without looking."""
        made = visitor()
        with TestClient(create_app(settings)) as other:
            assert status_of(other, made.headers) == 200
            http.delete(f"/keys/{made.id}", headers=OPERATOR)

            assert ends(other, made)


class TestRotating:
    def test_the_secret_before_stays_good_for_its_grace(self, http, visitor):
        """And no longer."""
        made = visitor()

        answer = http.post(f"/keys/{made.id}/rotate", json={"grace_s": 1}, headers=OPERATOR)

        new = Visitor(http, made.id, answer.json()["key"])
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.json()["rotated_until"]
        assert (status_of(http, new.headers), status_of(http, made.headers)) == (200, 200)
        assert ends(http, made)
        assert status_of(http, new.headers) == 200

    def test_without_grace_it_ends_at_once(self, http, visitor):
        """For a secret that got out."""
        made = visitor()

        http.post(f"/keys/{made.id}/rotate", json={"grace_s": 0}, headers=OPERATOR)

        assert status_of(http, made.headers) == 401


class TestTenants:
    def test_a_tenants_admin_reaches_its_own_keys_only(self, visitor):
        """Those of others are not there."""
        admin, other = visitor(tenant="acme", scopes=["admin"]), visitor(tenant="globex")

        own = admin("POST", "/keys", json={"name": "ci"}).json()

        assert own["tenant"] == "acme"
        listed = admin("GET", "/keys").json()["data"]
        assert {key["id"] for key in listed} == {admin.id, own["id"]}
        for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/rotate")]:
            there, never = (
                admin(method, f"/keys/{key_id}{path}", json={})
                for key_id in (other.id, "0" * 16)
            )
            assert (there.status_code, never.status_code) == (404, 404)
            assert there.json()["detail"].replace(other.id, "0" * 16) == never.json()["detail"]

    def test_it_makes_none_for_others(self, visitor):
        """Nor asks for their list."""
        admin = visitor(tenant="acme", scopes=["admin"])

        made = admin("POST", "/keys", json={"name": "x", "tenant": "globex"})
        listed = admin("GET", "/keys?tenant=globex")

        assert (made.status_code, listed.status_code) == (403, 403)

    def test_the_operator_lists_any(self, http, visitor):
        """By tenant, or all."""
        acme, globex, own = visitor(tenant="acme"), visitor(tenant="globex"), visitor()

        def listed(query: str) -> list[str]:
            data = http.get(f"/keys{query}", headers=OPERATOR).json()["data"]
            return [key["id"] for key in data]

        assert listed("") == [acme.id, globex.id, own.id]
        assert listed("?tenant=acme") == [acme.id]
        assert listed("?tenant=") == [own.id]


class TestFirst:
    @pytest.fixture
    def settings(self, settings):
        return settings.model_copy(update={"admin_key": None})

    def test_the_first_key_closes_the_door(self, http, app, settings):
        """For good: also when the store has lost it."""
        assert http.get("/jobs").status_code == 200

        made = http.post("/keys", json={"name": "me", "scopes": ["admin"]}).json()

        assert http.get("/jobs").status_code == 401
        admin = {"Authorization": f"Bearer {made['key']}"}
        assert http.get("/keys", headers=admin).json()["data"][0]["id"] == made["id"]
        http.app_state["store"].redis.flushall()
        with TestClient(create_app(settings)) as again:
            assert again.get("/jobs").status_code == 401

    def test_keys_in_the_store_close_the_door_as_well(self, http, settings, data_dir):
        """The data folder, with its mark, may be lost or be another one: at the start and later."""
        made = http.post("/keys", json=FIRST).json()
        shutil.rmtree(data_dir / "keys")
        with TestClient(create_app(settings)) as again:
            assert again.get("/jobs").status_code == 401
            assert again.post("/keys", json=FIRST).status_code == 401
        assert (data_dir / "keys" / "in_use").exists()

        keys = KeyStore(http.app_state["store"])
        keys.remove(made["id"])
        ring = KeyRing(keys, PepperFile(data_dir / "other"), known_s=0)
        assert ring.is_open
        keys.put(Secret.new(), pepper=b"p", name="x", tenant="", scopes=frozenset())
        assert not ring.is_open

    def test_it_is_made_again_if_its_owner_never_had_it(self, http, store):
        """Its record may be lost as well as its answer: nobody else could come in."""
        first, second = (http.post("/keys", json=FIRST).json() for _ in range(2))
        store.redis.flushall()
        third = http.post("/keys", json=FIRST).json()

        assert http.get("/keys").status_code == 401
        assert [status_of(http, bearer(made)) for made in (first, second, third)] == [
            401, 401, 200,
        ]  # fmt: skip

    @pytest.mark.parametrize("is_lost", [False, True])
    def test_a_key_that_was_used_is_never_replaced(self, http, store, is_lost):
        """Not even if the store is lost with it."""
        made = http.post("/keys", json=FIRST).json()
        assert status_of(http, bearer(made)) == 200
        if is_lost:
            store.redis.flushall()

        assert http.post("/keys", json=FIRST).status_code == 401

    def test_only_this_machine_makes_it_again(self, http):
        """As with the first one itself."""
        http.post("/keys", json=FIRST)

        elsewhere = {"X-Forwarded-For": "192.0.2.1"}
        assert http.post("/keys", json=FIRST, headers=elsewhere).status_code == 401

    def test_the_operators_own_key_ends_that(self, http, settings):
        """What is made with it is no first key, and stays."""
        http.post("/keys", json=FIRST)
        given = settings.model_copy(
            update={"admin_key": type(settings)(admin_key=ADMIN_KEY).admin_key}
        )
        with TestClient(create_app(given)) as other:
            assert other.post("/keys", json=FIRST).status_code == 401
            assert other.post("/keys", json=FIRST, headers=OPERATOR).status_code == 201

        assert http.post("/keys", json=FIRST).status_code == 401

    @pytest.mark.parametrize(
        "body",
        [
            {"scopes": ["read"]},
            {"scopes": ["admin"], "tenant": "acme"},
            {"scopes": ["admin"], "expires_in_s": 60},
        ],
    )
    def test_it_must_be_able_to_make_others(self, http, body):
        """For good, or nobody could."""
        answer = http.post("/keys", json={"name": "me"} | body)

        assert answer.status_code == 422
        assert "first key" in answer.json()["detail"]
        assert http.get("/jobs").status_code == 200

    def test_the_last_that_can_is_not_revoked(self, http):
        """Unless another can."""
        body = {"name": "me", "scopes": ["admin"]}
        first = http.post("/keys", json=body).json()
        admin = {"Authorization": f"Bearer {first['key']}"}
        http.post("/keys", json=body | {"expires_in_s": 60}, headers=admin)

        refused = http.delete(f"/keys/{first['id']}", headers=admin)
        second = http.post("/keys", json=body, headers=admin).json()
        done = http.delete(f"/keys/{first['id']}", headers=admin)

        assert (refused.status_code, done.status_code) == (422, 204)
        assert "FIMLORA_ADMIN_KEY" in refused.json()["detail"]
        assert status_of(http, {"Authorization": f"Bearer {second['key']}"}) == 200

    def test_a_key_is_not_ignored_where_none_was_made(self, http):
        """Who sends one thinks that it counts."""
        assert status_of(http, OPERATOR) == 401
