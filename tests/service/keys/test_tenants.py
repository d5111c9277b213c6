"""What one tenant has is not there for another: not forbidden, missing, as what never was."""

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from fimlora_contract.keys import Scope
from fimlora_jobs.catalogue import Catalogue
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.adapter_files import TAR, as_tar, files_of
from support.keys import OPERATOR, Visitor, routes
from support.presence import enter_worker
from support.results import make_result
from support.service import ROWS, as_jsonl

SCHEMA = create_app(Settings()).openapi()
JSONL = {"Content-Type": "application/x-ndjson"}
# Of a tenant's things, by the noun in front of an id.
BY_ID = [
    (method, path)
    for method, path, _ in routes(SCHEMA)
    if re.match(r"/(jobs|evaluations|datasets|adapters)/{id}", path)
]
BODIES = {
    "/jobs/{id}/allocate": {"budget": 8},
    "/jobs/{id}/sweep": {"budget": 8},
    "/jobs/{id}/compare": {"budget": 8, "methods": ["fim", "uniform"]},
    "/adapters/{id}/truncate": {"budget": 2},
    "/adapters/{id}/audit": {},
    "/adapters/{id}/convert": {"layout": "C"},
}
NO_DIGEST = "sha256:" + "0" * 64
MANY = {"source": "inline", "rows": [{"text": f"t {n}", "label": n % 2} for n in range(80)]}


@dataclass(frozen=True)
class Having:
    """What a tenant has."""

    job: str
    digest: str
    dataset: str
    adapter: str

    def of(self, noun: str) -> str:
        return {
            "jobs": self.job,
            "evaluations": self.job,
            "datasets": self.dataset,
            "adapters": self.adapter,
        }[noun]

    def like(self, noun: str) -> str:
        """An id that could be one of these, and never was."""
        there = self.of(noun)
        return there[:-12] + "0" * 12


@pytest.fixture
def acme(visitor) -> Visitor:
    return visitor(tenant="acme")


@pytest.fixture
def globex(visitor) -> Visitor:
    return visitor(tenant="globex")


@pytest.fixture
def finish(store, data_dir):
    """Play a worker that runs a job to its good end, and files it; answers the result."""

    def run(job_id: str, **options: Any) -> dict[str, Any]:
        store.start(job_id, 1, worker="w")
        result = make_result(data_dir, **options)
        store.succeed(job_id, 1, result)
        record = store.get(job_id)
        store.remember_result(record.fields["request_digest"], job_id)
        store.remember_statistics(record.fields["statistics_digest"], job_id)
        Catalogue(store).file(record)
        return result

    return run


@pytest.fixture
def having(acme, body, finish) -> Having:
    """A finished job, a dataset and an adapter of acme's."""
    job = acme("POST", "/calibrate", json=body).json()["id"]
    dataset = acme("POST", "/datasets", content=as_jsonl(ROWS), headers=JSONL).json()["id"]
    adapter = acme("POST", "/adapters", content=as_tar(files_of()), headers=TAR).json()["id"]
    return Having(job, finish(job)["digest"], dataset, adapter)


def said(answer: Any, *ids: str) -> dict[str, Any]:
    """An answer without what is of the one request."""
    text = answer.text
    for each in ids:
        text = text.replace(each, "ID")
    return {k: v for k, v in json.loads(text).items() if k not in {"request_id"}}


def test_another_tenants_things_are_missing(globex, having):
    """By every route with an id, in the very words for what never was."""
    assert len(BY_ID) > 20
    for method, path in BY_ID:
        noun = path.split("/")[1]
        there, never = having.of(noun), having.like(noun)
        where = path.replace("{name}", "adapter_config.json")
        answers = [
            globex(method, where.replace("{id}", id_).replace("{other}", id_), json=body)
            for body in [BODIES.get(path, {})]
            for id_ in (there, never)
        ]

        assert [answer.status_code for answer in answers] == [404, 404], (method, path)
        assert said(answers[0], there) == said(answers[1], never), (method, path)


def test_its_own_are_there(acme, having):
    """By the same routes, and for the operator too."""
    for who in (acme, lambda *a, **k: acme(*a, **k, headers=OPERATOR)):
        for path in ("jobs", "datasets", "adapters"):
            found = who("GET", f"/{path}/{having.of(path)}")

            assert found.status_code == 200, path
            assert found.json()["owner"] == "acme"


def test_a_diff_with_another_tenants_job_is_missing(globex, having, body, finish):
    """Whichever of the two it is."""
    own = globex("POST", "/calibrate", json=body).json()["id"]
    finish(own)

    assert globex("GET", f"/jobs/{own}/diff/{own}").status_code == 200
    assert globex("GET", f"/jobs/{own}/diff/{having.job}").status_code == 404
    assert globex("GET", f"/jobs/{having.job}/diff/{own}").status_code == 404


class TestInBodies:
    @pytest.fixture
    def asked(self, globex, body):
        """What globex is told of another tenant's thing, and of one that never was."""

        def ask(method, path, change, thing, never):
            answers = []
            for each in (thing, never):
                sent = json.loads(json.dumps(change).replace("THING", each))
                whole = sent if method == "PUT" or path.endswith("/audit") else body | sent
                answers.append(globex(method, path, json=whole))
            statuses = [answer.status_code for answer in answers]
            assert said(answers[0], thing) == said(answers[1], never)
            return statuses

        return ask

    @pytest.mark.parametrize(
        ("path", "role", "more"),
        [
            ("/calibrate", "dataset", {}),
            ("/estimate", "dataset", {}),
            ("/evaluations", "dataset", {}),
            ("/compare", "dataset", {"methods": ["fim", "uniform"]}),
            ("/calibrate", "retain", {"allocation": {"method": "vila"}}),
            ("/evaluations", "eval_dataset", {"dataset": MANY}),
        ],
    )
    def test_a_dataset(self, asked, having, path, role, more):
        change = {role: {"source": "upload", "id": "THING"}} | more

        statuses = asked("POST", path, change, having.dataset, having.like("datasets"))

        assert statuses == [404, 404]

    @pytest.mark.parametrize("path", ["/calibrate", "/estimate"])
    def test_an_adapter(self, asked, having, path):
        change = {"calibration": {"adapter": "THING"}}

        assert asked("POST", path, change, having.adapter, having.like("adapters")) == [
            404,
            404,
        ]

    def test_a_job_or_result_to_pin(self, asked, having):
        put = ("PUT", "/rank-patterns/a/b")

        assert asked(*put, {"job_id": "THING"}, having.job, having.like("jobs")) == [404, 404]
        assert asked(*put, {"digest": "THING"}, having.digest, NO_DIGEST) == [404, 404]

    def test_plans_to_evaluate(self, acme, asked, having):
        acme("PUT", "/rank-patterns/sst2/prod", json={"job_id": having.job})
        change = {"plans": {"mine": "THING"}, "dataset": MANY}
        post = ("POST", "/evaluations")

        assert asked(*post, change, having.job, having.like("jobs")) == [404, 404]
        assert asked(*post, change, having.digest, NO_DIGEST) == [404, 404]
        assert asked(*post, change, "sst2/prod", "sst2/never") == [404, 404]

    def test_a_job_to_audit_by(self, globex, asked, having):
        sent = globex("POST", "/adapters", content=as_tar(files_of()), headers=TAR)
        path = f"/adapters/{sent.json()['id']}/audit"

        assert asked("POST", path, {"job_id": "THING"}, having.job, having.like("jobs")) == [
            404,
            404,
        ]


class TestLists:
    @pytest.mark.parametrize("path", ["/jobs", "/evaluations", "/datasets", "/adapters"])
    def test_have_only_ones_own(self, http, acme, globex, having, body, path):
        """And all for the operator, who may ask for one tenant's."""
        acme("POST", "/evaluations", json=body | {"dataset": MANY})

        def ids(ask, query: str = "") -> list[str]:
            return [entry["id"] for entry in ask("GET", path + query).json()["data"]]

        def operator(method: str, where: str) -> Any:
            return http.request(method, where, headers=OPERATOR)

        own = ids(acme)
        assert own
        assert (
            ids(acme, "?tenant=acme") == own == ids(operator) == ids(operator, "?tenant=acme")
        )
        assert ids(globex) == ids(operator, "?tenant=globex") == ids(operator, "?tenant=") == []
        assert globex("GET", f"{path}?tenant=acme").status_code == 403

    def test_are_turned_by_cursors(self, acme, globex, body):
        """Page by page, each tenant through its own."""
        for seed in range(5):
            for who in (acme, globex):
                who("POST", "/calibrate", json=body | {"calibration": {"seed": seed}})

        seen, cursor = [], ""
        while True:
            page = acme("GET", f"/jobs?limit=2{cursor}").json()
            seen += page["data"]
            if not page["next_cursor"]:
                break
            cursor = f"&cursor={page['next_cursor']}"

        assert len(seen) == 5
        assert {job["owner"] for job in seen} == {"acme"}

    def test_of_workers_hide_others_jobs(self, acme, globex, store, body):
        """That one is busy all may see."""
        job_id = acme("POST", "/calibrate", json=body).json()["id"]
        enter_worker(store).begin(f"{job_id}-1")

        seen = [who("GET", "/workers").json()["data"][0] for who in (acme, globex)]

        assert [worker["job_id"] for worker in seen] == [job_id, None]
        assert [worker["state"] for worker in seen] == ["busy", "busy"]


def test_what_is_about_all_tenants_is_the_operators(http, visitor):
    """A tenant's admin neither sees what others keep nor makes room among it."""
    admin = visitor(tenant="acme", scopes=["admin"])

    for method, path in (("GET", "/cache"), ("POST", "/cache/evict")):
        assert admin(method, path).status_code == 403
        assert http.request(method, path, headers=OPERATOR).status_code == 200


class TestEqualRequests:
    def test_of_two_tenants_share_nothing(self, acme, globex, having, body):
        """Neither an open job, nor a result, nor statistics, nor an idempotency key."""
        key = {"Idempotency-Key": "k"}
        new = body | {"budget": 16}
        first = acme("POST", "/calibrate", json=new, headers=key)
        other = globex("POST", "/calibrate", json=new, headers=key)
        cached = globex("POST", "/calibrate", json=body)
        replanned = globex("POST", "/calibrate", json=body | {"budget": 4})

        assert [a.status_code for a in (first, other, cached, replanned)] == [202] * 4
        assert first.json()["statistics_from"] == having.job
        for answer in (other, cached, replanned):
            assert answer.json()["id"] not in {having.job, first.json()["id"]}
            assert answer.json()["owner"] == "globex"
            assert answer.json()["statistics_from"] is None
        estimate = globex("POST", "/estimate", json=body).json()
        assert having.job not in json.dumps(estimate)

    def test_of_one_tenant_do(self, acme, visitor, having, body):
        """Whatever key they come with."""
        colleague = visitor(tenant="acme")

        again = colleague("POST", "/calibrate", json=body)

        assert (again.status_code, again.json()["id"]) == (200, having.job)

    def test_a_key_with_the_name_of_a_tenant_is_no_other(self, http, acme, body):
        """The operator's keys are kept apart, however they are spelled."""
        for name in ("acme\\nk", "acme:k", "acme k"):
            ids = {
                http.post(
                    "/calibrate",
                    json=body | {"force": True},
                    headers={"Idempotency-Key": key} | headers,
                ).json()["id"]
                for key, headers in ((name, OPERATOR), ("k", acme.headers))
            }

            assert len(ids) == 2

    def test_the_operators_retry_stays_the_tenants(self, http, acme, body):
        """As the job was."""
        job_id = acme("POST", "/calibrate", json=body).json()["id"]
        acme("POST", f"/jobs/{job_id}/cancel")

        again = http.post(f"/jobs/{job_id}/retry", headers=OPERATOR).json()

        assert again["owner"] == "acme"
        assert acme("GET", f"/jobs/{again['id']}").status_code == 200


class TestUploads:
    def test_the_same_bytes_are_new_to_each_tenant(self, http, acme, globex, having):
        """An answer tells nothing of what others have."""
        rows, adapter = as_jsonl(ROWS), as_tar(files_of())
        other = globex("POST", "/datasets", content=rows, headers=JSONL)
        own = http.post("/datasets", content=rows, headers=JSONL | OPERATOR)
        trained = globex("POST", "/adapters", content=adapter, headers=TAR)
        again = acme("POST", "/datasets", content=rows, headers=JSONL)

        assert [a.status_code for a in (other, own, trained, again)] == [201, 201, 201, 200]
        assert len({having.dataset, other.json()["id"], own.json()["id"]}) == 3
        assert trained.json()["id"] != having.adapter

    def test_deleting_ones_own_leaves_the_others(self, acme, globex, having):
        """With the same content."""
        other = globex("POST", "/datasets", content=as_jsonl(ROWS), headers=JSONL).json()["id"]

        assert globex("DELETE", f"/datasets/{other}").status_code == 204
        assert acme("GET", f"/datasets/{having.dataset}").status_code == 200

    def test_a_refusal_names_no_job_of_others(self, http, acme, having, body):
        """One of the operator's may need the dataset, too."""
        sent = body | {"dataset": {"source": "upload", "id": having.dataset}}
        own = acme("POST", "/calibrate", json=sent).json()["id"]
        operators = http.post("/calibrate", json=sent, headers=OPERATOR).json()["id"]

        refused = acme("DELETE", f"/datasets/{having.dataset}")

        assert refused.status_code == 409
        assert [entry["job_id"] for entry in refused.json()["errors"]] == [own]
        assert operators not in refused.text


class TestRankPatterns:
    def test_a_result_is_its_tenants(self, acme, globex, having, http):
        """By its address, which others could know."""
        path = f"/rank-patterns/{having.digest}"

        assert acme("GET", path).status_code == 200
        assert http.get(path, headers=OPERATOR).status_code == 200
        assert globex("GET", path).status_code == 404

    def test_the_same_result_may_be_several_tenants(self, globex, having, body, finish):
        """Whoever has made it has it."""
        job_id = globex("POST", "/calibrate", json=body).json()["id"]

        assert finish(job_id)["digest"] == having.digest
        assert globex("GET", f"/rank-patterns/{having.digest}").status_code == 200

    def test_inputs_find_ones_own(self, acme, globex, visitor, finish, body, data_dir):
        """Registered data is everybody's, what was made of it is not."""
        (data_dir / "datasets" / "rows.jsonl").write_bytes(as_jsonl(ROWS))
        sent = body | {"dataset": "local:rows.jsonl"}
        query = "/rank-patterns?model=local:tiny&dataset=local:rows.jsonl"

        finish(acme("POST", "/calibrate", json=sent).json()["id"])
        assert acme("GET", query).status_code == 200
        assert [who("GET", query).status_code for who in (globex, visitor())] == [404, 404]

        digest = finish(globex("POST", "/calibrate", json=sent).json()["id"], budget=4)[
            "digest"
        ]
        assert globex("GET", query).headers["ETag"] == f'"{digest}"'
        assert acme("GET", query).headers["ETag"] != f'"{digest}"'


class TestPins:
    PATH = "/rank-patterns/sst2/prod"

    def test_a_tenants_pin_is_its_own(self, acme, globex, having):
        """Another one of the same name is another one."""
        assert acme("PUT", self.PATH, json={"job_id": having.job}).status_code == 201

        assert acme("GET", self.PATH).status_code == 200
        for path in (self.PATH, f"{self.PATH}/history"):
            assert globex("GET", path).status_code == 404

    def test_the_operators_is_shared_until_one_has_its_own(
        self, http, acme, globex, having, body, finish
    ):
        """And only an admin key of the operator sets it."""
        assert http.put(self.PATH, json={"job_id": having.job}, headers=OPERATOR).is_success
        shared = globex("GET", self.PATH)
        own = globex("POST", "/calibrate", json=body | {"budget": 16}).json()["id"]
        digest = finish(own, budget=4)["digest"]
        globex("PUT", self.PATH, json={"job_id": own})

        assert shared.headers["ETag"] == f'"{having.digest}"'
        assert globex("GET", f"/rank-patterns/{having.digest}").status_code == 200
        assert globex("GET", self.PATH).headers["ETag"] == f'"{digest}"'
        assert acme("GET", self.PATH).headers["ETag"] == f'"{having.digest}"'
        assert acme("GET", f"{self.PATH}/history").json()["owner"] == ""

    def test_a_list_has_ones_own_and_the_shared_that_they_do_not_hide(
        self, http, acme, globex, having
    ):
        """An admin key may ask for a tenant's."""
        body = {"job_id": having.job}
        for name in ("both", "shared"):
            assert http.put(f"/rank-patterns/{name}/x", json=body, headers=OPERATOR).is_success
        for name in ("both", "own"):
            assert acme("PUT", f"/rank-patterns/{name}/x", json=body).is_success

        def listed(answer):
            assert answer.status_code == 200, answer.text
            return [(pin["name"], pin["owner"]) for pin in answer.json()["data"]]

        of_acme = [("both", "acme"), ("own", "acme"), ("shared", "")]
        assert listed(acme("GET", "/pins")) == of_acme
        assert listed(globex("GET", "/pins")) == [("both", ""), ("shared", "")]
        assert listed(http.get("/pins", headers=OPERATOR)) == [("both", ""), ("shared", "")]
        assert listed(http.get("/pins?tenant=acme", headers=OPERATOR)) == of_acme
        assert globex("GET", "/pins?tenant=acme").status_code == 403
        pages = [acme("GET", f"/pins?limit=1&cursor={c}:x") for c in ("both", "own", "shared")]
        assert [listed(page) for page in pages] == [of_acme[1:2], of_acme[2:], []]

    def test_who_has_no_admin_scope_sets_no_shared_pin(self, http, visitor, body, finish):
        """Though he reads and submits for the operator."""
        who = visitor(scopes=[Scope.READ, Scope.SUBMIT])
        job_id = who("POST", "/calibrate", json=body).json()["id"]
        finish(job_id)

        assert who("PUT", self.PATH, json={"job_id": job_id}).status_code == 403
        assert http.put(self.PATH, json={"job_id": job_id}, headers=OPERATOR).is_success
        assert who("GET", self.PATH).status_code == 200

    def test_the_history_tells_who_when_from_and_to(self, acme, visitor, having, body, finish):
        """The newest first; repeating a pin is no event."""
        colleague = visitor(tenant="acme")
        acme("PUT", self.PATH, json={"job_id": having.job})
        again = acme("POST", "/calibrate", json=body | {"budget": 16}).json()["id"]
        digest = finish(again, budget=4)["digest"]
        for _ in range(2):
            assert colleague("PUT", self.PATH, json={"digest": digest}).status_code == 200

        newest, oldest = acme("GET", f"{self.PATH}/history").json()["history"]

        assert (newest["digest"], newest["replaced"]) == (digest, having.digest)
        assert (oldest["digest"], oldest["replaced"]) == (having.digest, None)
        assert (newest["pinned_by"], oldest["pinned_by"]) == (colleague.id, acme.id)
        assert oldest["pinned_at"] <= newest["pinned_at"]
