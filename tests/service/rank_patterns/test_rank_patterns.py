"""Rank patterns by content, by inputs and by name, and the drift between two results."""

import json

import pytest
import yaml

from fimlora.adapter.exports import FORMATS
from fimlora_contract.rank_patterns import PeftConfig, RankPattern
from fimlora_jobs.catalogue import Catalogue
from fimlora_service.rank_patterns.render import Format
from support.results import make_result, make_statistics


@pytest.fixture
def finish(http, body, store, data_dir):
    """Play a worker that finishes a new job; the function takes what `make_result` takes."""

    def run(*, change=None, **options):
        job_id = http.post("/calibrate", json=body | {"force": True} | (change or {})).json()[
            "id"
        ]
        store.start(job_id, 1, worker="w")
        result = make_result(data_dir, **options)
        store.succeed(job_id, 1, result)
        Catalogue(store).file(store.get(job_id))
        return job_id, result

    return run


class TestByContent:
    def test_a_result_is_immutable_under_its_digest(self, http, finish):
        """Config and rank map, the digest as the tag, and caches may keep it for ever."""
        _, result = finish()

        answer = http.get(f"/rank-patterns/{result['digest']}")

        assert answer.status_code == 200
        assert answer.json()["adapter_config"] == result["adapter_config"]
        assert answer.json()["rank_map"] == result["rank_map"]
        assert answer.headers["ETag"] == f'"{result["digest"]}"'
        assert "immutable" in answer.headers["Cache-Control"]

    @pytest.mark.parametrize("format", ["json", "yaml", *FORMATS])
    def test_every_format_is_sent_once(self, http, finish, format):
        """200 with a tag, then 304 without a body, in every tool's words."""
        _, result = finish()
        url = f"/rank-patterns/{result['digest']}?format={format}"
        url += "&steps=100&accumulation=2" if format == "adalora" else ""

        first = http.get(url)
        again = http.get(url, headers={"If-None-Match": first.headers["ETag"]})

        assert (first.status_code, again.status_code) == (200, 304)
        assert first.text
        kind = first.headers["content-type"].partition(";")[0]
        documented = http.get("/openapi.json").json()["paths"]["/rank-patterns/{digest}"]
        schema = documented["get"]["responses"]["200"]["content"][kind]["schema"]
        if kind == "application/json":
            names = {each["$ref"].rpartition("/")[2] for each in schema["anyOf"]}
            assert names == {"RankPattern", "PeftConfig"}
            model = RankPattern if format == "json" else PeftConfig
            assert model.model_validate_json(first.text, strict=True)
        else:
            assert schema == {"type": "object" if "yaml" in kind else "string"}
        assert again.content == b""

    def test_peft_is_the_stored_config(self, http, finish):
        """The very file that the job wrote."""
        _, result = finish()

        answer = http.get(f"/rank-patterns/{result['digest']}?format=peft")

        assert answer.json() == result["adapter_config"]
        assert answer.headers["Content-Type"] == "application/json"

    def test_yaml_is_json_in_other_words(self, http, finish):
        """The same data."""
        _, result = finish()
        url = f"/rank-patterns/{result['digest']}"

        assert yaml.safe_load(http.get(url + "?format=yaml").text) == http.get(url).json()

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("format=adalora", "give steps"),
            ("format=adalora&steps=1", "must be at least 2"),
            ("format=adalora&steps=1e3", "whole number"),
            ("format=json&steps=9", "format=adalora only"),
            ("format=yaml&accumulation=1", "format=adalora only"),
            ("format=peft&steps=9", "format=adalora only"),
        ],
    )
    def test_a_length_of_training_is_for_adalora_and_only_there(
        self, http, finish, query, said
    ):
        """422, never a schedule that crashes or a number that is ignored."""
        _, result = finish()

        answer = http.get(f"/rank-patterns/{result['digest']}?{query}")

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert said in answer.text

    def test_a_tool_that_cannot_take_the_plan_says_why(self, http, finish):
        """422 with the engine's sentence."""
        _, result = finish(statistics=make_statistics(width=700), budget=300, r_max=600)

        answer = http.get(f"/rank-patterns/{result['digest']}?format=layout-c")

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert "pads to at most rank 256" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("sha256:" + "0" * 64, 404),
            ("sha256:..%2f..", 422),
            ("sha256:0", 422),
            ("sha256:" + "0" * 64 + "?format=gguf", 422),
        ],
    )
    def test_what_is_not_there_is_told(self, http, path, status):
        """404 for an unknown digest, 422 for what is none."""
        assert http.get(f"/rank-patterns/{path}").status_code == status

    def test_the_formats_are_the_engine_s(self):
        """The wire offers what the engine writes, and the two that are its own."""
        assert set(Format.__args__) == {"json", "yaml", *FORMATS}


class TestByInputs:
    @pytest.fixture
    def upload(self, http) -> str:
        rows = b"".join(
            json.dumps({"text": f"t{n}", "label": n % 2}).encode() + b"\n" for n in range(4)
        )
        headers = {"Content-Type": "application/jsonl"}
        return http.post("/datasets", content=rows, headers=headers).json()["id"]

    def ask(self, http, upload, **query):
        query = {"model": "local:tiny", "dataset": f"upload:{upload}"} | query
        return http.get("/rank-patterns", params=query)

    def test_the_newest_match_is_found(self, http, finish, upload):
        """With the budget given, of that budget; without, of any."""
        dataset = {"dataset": f"upload:{upload}"}
        _, eight = finish(change=dataset)
        _, four = finish(change=dataset | {"budget": {"rank": 4}}, budget=4)

        assert self.ask(http, upload).json()["digest"] == four["digest"]
        assert self.ask(http, upload, budget="8").json()["digest"] == eight["digest"]
        assert self.ask(http, upload, budget="rank:4").json()["digest"] == four["digest"]

    def test_content_finds_it_too(self, http, finish, upload, store):
        """Digests of model and dataset in place of names."""
        job_id, result = finish(change={"dataset": f"upload:{upload}"})
        resolved = store.get(job_id).resolved

        answer = http.get(
            "/rank-patterns",
            params={
                "model": resolved["base_model"]["digest"],
                "dataset": resolved["dataset"]["digest"],
            },
        )

        assert answer.json()["digest"] == result["digest"]
        assert answer.headers["Cache-Control"] == "no-cache"

    @pytest.mark.parametrize(
        "query", [{"budget": "9"}, {"model": "local:other"}, {"dataset": "local:x"}], ids=str
    )
    def test_no_match_starts_no_work(self, http, finish, upload, query):
        """404, and no job more than before."""
        finish(change={"dataset": f"upload:{upload}"})
        before = len(http.get("/jobs").json()["data"])

        answer = self.ask(http, upload, **query)

        assert (answer.status_code, answer.json()["code"]) == (404, "no_pattern")
        assert len(http.get("/jobs").json()["data"]) == before

    def test_a_deleted_record_gives_way_to_an_older_one(self, http, finish, upload, store):
        """The index is a hint; records count."""
        _, older = finish(change={"dataset": f"upload:{upload}"})
        newest, _ = finish(change={"dataset": f"upload:{upload}"}, r_max=12)
        store.redis.delete(store.key("job", newest))

        assert self.ask(http, upload).json()["digest"] == older["digest"]

    @pytest.mark.parametrize("budget", ["x", "-1", "ranks:8", "fraction:2", "parameters:1.5"])
    def test_a_wrong_budget_is_refused(self, http, upload, budget):
        """A unit and a number."""
        assert self.ask(http, upload, budget=budget).status_code == 422


class TestPins:
    URL = "/rank-patterns/sst2/prod"

    def test_a_pin_is_fetched_once(self, http, finish):
        """What a pipeline does on every run: 200 the first time, 304 after that."""
        job_id, result = finish()
        pinned = http.put(self.URL, json={"job_id": job_id})

        first = http.get(self.URL)
        again = http.get(self.URL, headers={"If-None-Match": first.headers["ETag"]})

        assert pinned.status_code == 201
        assert first.json()["digest"] == result["digest"]
        assert first.headers["Cache-Control"] == "no-cache"
        assert (again.status_code, again.content) == (304, b"")

    def test_a_moved_pin_keeps_its_history(self, http, finish):
        """The newest entry counts, and the tag of the old one does not match any more."""
        (_, old), (_, new) = finish(), finish(budget=4)
        http.put(self.URL, json={"digest": old["digest"]})
        tag = http.get(self.URL).headers["ETag"]

        moved = http.put(self.URL, json={"digest": new["digest"]})
        same = http.put(self.URL, json={"digest": new["digest"]})

        assert (moved.status_code, same.status_code) == (200, 200)
        history = http.get(self.URL + "/history").json()["history"]
        assert [entry["digest"] for entry in history] == [new["digest"], old["digest"]]
        assert http.get(self.URL, headers={"If-None-Match": tag}).status_code == 200

    def test_only_results_can_be_pinned(self, http, job_id):
        """404 for an unknown digest or job, 409 for a job without a result."""
        unknown = {"digest": "sha256:" + "0" * 64}

        assert http.put(self.URL, json=unknown).json()["code"] == "no_pattern"
        assert http.put(self.URL, json={"job_id": "job_0"}).status_code == 404
        assert http.put(self.URL, json={"job_id": job_id}).status_code == 409
        assert http.get(self.URL).json()["code"] == "no_pattern"

    @pytest.mark.parametrize("url", [URL, URL + "/history"])
    def test_a_pin_that_was_never_set_says_how_to_set_it(self, http, url):
        """Another calibration would not."""
        problem = http.get(url).json()

        assert problem["detail"] == "nothing is pinned as sst2/prod"
        assert problem["next_step"].startswith(f"PUT {self.URL} with a job_id or a digest")

    @pytest.mark.parametrize(
        "body_", [{}, {"digest": "x"}, {"digest": "sha256:" + "0" * 64, "job_id": "j"}], ids=str
    )
    def test_a_wrong_body_is_refused(self, http, body_):
        """A digest or a job, not both."""
        assert http.put(self.URL, json=body_).status_code == 422

    def test_all_are_listed_by_name_page_by_page(self, http, finish):
        """What each stands for now, once, whatever it stood for before."""
        (_, old), (_, new) = finish(), finish(budget=4)
        for name in ("b/x", "a/y", "a-1/z", "a/x", "a/y"):
            http.put(f"/rank-patterns/{name}", json={"digest": old["digest"]})
        http.put("/rank-patterns/a/y", json={"digest": new["digest"]})

        pages = [http.get("/pins", params={"limit": 2}).json()]
        while cursor := pages[-1]["next_cursor"]:
            pages.append(http.get("/pins", params={"limit": 2, "cursor": cursor}).json())

        assert [len(page["data"]) for page in pages] == [2, 2]
        pins = [pin for page in pages for pin in page["data"]]
        assert [(pin["name"], pin["tag"]) for pin in pins] == [
            ("a-1", "z"), ("a", "x"), ("a", "y"), ("b", "x"),
        ]  # fmt: skip
        assert [pin["digest"] for pin in pins] == [
            new["digest"] if (pin["name"], pin["tag"]) == ("a", "y") else old["digest"]
            for pin in pins
        ]
        newest = http.get("/rank-patterns/a/y/history").json()["history"][0]
        assert pins[2]["pinned_at"] == newest["pinned_at"]

    def test_those_of_before_there_was_a_list_are_listed(self, http, finish, redis_client):
        """A store may be older than the service."""
        _, result = finish()
        http.put(self.URL, json={"digest": result["digest"]})
        redis_client.delete("fimlora:pins")
        http.put("/rank-patterns/new/prod", json={"digest": result["digest"]})

        names = [pin["name"] for pin in http.get("/pins").json()["data"]]

        assert names == ["new", "sst2"]

    def test_without_any_the_list_is_empty(self, http):
        assert http.get("/pins").json() == {"object": "list", "data": [], "next_cursor": None}

    @pytest.mark.parametrize("query", ["cursor=sst2", "cursor=a:b:c", "limit=0", "limit=101"])
    def test_a_wrong_page_is_refused(self, http, query):
        assert http.get(f"/pins?{query}").status_code == 422

    def test_names_are_plain(self, http, finish):
        """No name becomes a path or a key of another kind."""
        _, result = finish()

        answer = http.put("/rank-patterns/a:b/prod", json={"digest": result["digest"]})

        assert answer.status_code == 422


class TestDiff:
    def test_drift_is_told_per_module_and_in_sum(self, http, finish):
        """The changes are those of the two rank maps, the largest first."""
        (a, first), (b, second) = finish(), finish(statistics=make_statistics(seed=1), budget=6)

        diff = http.get(f"/jobs/{a}/diff/{b}").json()

        before, after = (
            {m["name"]: m["rank"] for m in r["rank_map"]["modules"]} for r in (first, second)
        )
        changes = {name: after[name] - before[name] for name in before}
        assert {m["name"]: m["change"] for m in diff["modules"]} == {
            name: change for name, change in changes.items() if change
        }
        sizes = [abs(m["change"]) for m in diff["modules"]]
        assert sizes == sorted(sizes, reverse=True)
        assert diff["drift"]["moved"] == sum(sizes)
        assert diff["drift"]["largest_change"] == sizes[0]
        assert diff["drift"]["ranks_b"] - diff["drift"]["ranks_a"] == sum(changes.values())

    def test_a_result_does_not_differ_from_itself(self, http, finish):
        """No module, and zero in sum."""
        a, _ = finish()

        diff = http.get(f"/jobs/{a}/diff/{a}").json()

        assert diff["modules"] == []
        assert (diff["drift"]["moved"], diff["drift"]["share_moved"]) == (0, 0.0)

    def test_results_without_common_modules_are_wholly_different(self, http, finish):
        """Every rank has moved."""
        (a, _), (b, _) = finish(), finish(statistics=make_statistics(n_layers=8))

        drift = http.get(f"/jobs/{a}/diff/{b}").json()["drift"]

        assert drift["n_modules"] == 24
        assert 0 < drift["share_moved"] <= 1

    def test_both_jobs_must_have_results(self, http, finish, job_id):
        """409 and 404, whichever side it is."""
        a, _ = finish()

        assert http.get(f"/jobs/{a}/diff/{job_id}").status_code == 409
        assert http.get(f"/jobs/job_0/diff/{a}").status_code == 404
