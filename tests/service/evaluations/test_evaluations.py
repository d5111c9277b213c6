"""POST /evaluations: accepted as jobs of their own kind, refused before the queue."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rq import Queue

from fimlora import TargetModule, select_experts
from fimlora_contract.evaluations import MOST_RUNS, MOST_TRAINED_ROWS, EvaluationRequest
from fimlora_jobs.attempts import QUEUE_NAME
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.runs import Runs
from fimlora_jobs.step_times import note_step_seconds
from fimlora_service.evaluations.openapi_examples import EVALUATION_EXAMPLES
from support.results import make_result, make_statistics


class TestAccepting:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    def test_it_is_queued_as_a_job_of_its_kind(self, http, body, redis_client, prefix):
        """202 with its address; the request has the defaults, and the record its kind."""
        answer = http.post(f"{prefix}/evaluations", json=body | {"quick": True})
        job = answer.json()

        assert answer.status_code == 202
        assert answer.headers["Location"] == f"{prefix}/evaluations/{job['id']}"
        assert answer.headers["Retry-After"] == "2"
        assert (job["kind"], job["status"], job["result"]) == ("evaluation", "queued", None)
        assert job["request"]["batch_size"] == 16
        assert redis_client.lrange(f"rq:queue:{QUEUE_NAME}", 0, -1) == [
            f"{job['id']}-1".encode()
        ]

    def test_equal_requests_share_a_job_and_find_its_result(self, http, body, store, found):
        """While it is open, and after it has succeeded: 200."""
        first = http.post("/evaluations", json=body).json()
        second = http.post("/evaluations", json=body).json()
        store.start(first["id"], 1, worker="w")
        store.succeed(first["id"], 1, found)
        third = http.post("/evaluations", json=body)

        assert second["id"] == first["id"]
        assert second["requests"] == 2
        # Its files are not kept, so it must be done again.
        assert third.status_code == 202
        assert third.json()["id"] != first["id"]

    def test_a_result_that_is_kept_answers_an_equal_request(
        self, http, body, store, found, data_dir
    ):
        """With 200 and what was found, and nothing is queued."""
        job_id = http.post("/evaluations", json=body).json()["id"]
        kept = make_result(data_dir)
        store.start(job_id, 1, worker="w")
        store.succeed(job_id, 1, found | {"digest": kept["digest"]})
        store.remember_result(store.get(job_id).fields["request_digest"], job_id)

        again = http.post("/evaluations", json=body)
        other = http.post("/evaluations", json=body | {"seeds": 6})

        assert (again.status_code, again.json()["id"]) == (200, job_id)
        assert again.json()["cached"] is True
        assert again.json()["result"]["verdict"]["sentence"] == "Use uniform."
        assert other.status_code == 202

    @pytest.mark.parametrize(
        "changed",
        [
            {"seeds": 7}, {"steps": 10}, {"batch_size": 4}, {"max_length": 32},
            {"learning_rates": [0.001, 0.002]}, {"quick": True}, {"eval_share": 0.5},
            {"eval_rows": 9}, {"methods": ["spectral"]}, {"budget": 7},
            {"calibration": {"seed": 1}},
        ],
        ids=lambda changed: next(iter(changed)),
    )  # fmt: skip
    def test_whatever_decides_the_result_makes_another_job(self, http, body, changed):
        """Two evaluations share one only if all that is trained is the same."""
        first, second = (
            http.post("/evaluations", json=request).json()["id"]
            for request in (body, body | changed)
        )

        assert first != second

    def test_it_is_no_calibration_of_the_same_inputs(self, http, body):
        """Neither shares the other's job, nor the other's idempotency key."""
        headers = {"Idempotency-Key": "k"}
        calibration = http.post("/calibrate", json=body, headers=headers)
        evaluation = http.post("/evaluations", json=body)
        mixed = http.post("/evaluations", json=body, headers=headers)

        assert calibration.json()["id"] != evaluation.json()["id"]
        assert (mixed.status_code, mixed.json()["code"]) == (422, "idempotency_mismatch")

    def test_measured_statistics_do_not_put_it_first(self, http, body, succeed, redis_client):
        """They spare it the passes, not the training: whoever came before goes before."""
        calibration = http.post("/calibrate", json=body | {"allocation": {}}).json()["id"]
        redis_client.delete(f"rq:queue:{QUEUE_NAME}")
        succeed(calibration)
        waiting = http.post("/calibrate", json=body | {"budget": 4, "force": True}).json()["id"]

        job_id = http.post("/evaluations", json=body).json()["id"]

        queue = redis_client.lrange(f"rq:queue:{QUEUE_NAME}", 0, -1)
        assert queue == [f"{waiting}-1".encode(), f"{job_id}-1".encode()]

    def test_one_key_makes_one_evaluation(self, http, body):
        """However often it is sent."""
        headers = {"Idempotency-Key": "mine"}
        ids = {
            http.post("/evaluations", json=body | {"force": True}, headers=headers).json()["id"]
            for _ in range(3)
        }

        assert len(ids) == 1


class TestLooking:
    def test_it_is_found_under_both_nouns(self, http, evaluation_id, store, found):
        """The same answer, and both are told of the end."""
        store.start(evaluation_id, 1, worker="w")
        store.succeed(evaluation_id, 1, found)
        evaluation = http.get(f"/evaluations/{evaluation_id}?wait=5")

        assert evaluation.json() == http.get(f"/jobs/{evaluation_id}").json()
        assert evaluation.json()["result"]["differences"][0]["mean"] == -0.01
        assert evaluation.json()["result"]["arms"][0]["metrics"]["loss"]["spread"] is None
        tag = {"If-None-Match": evaluation.headers["ETag"]}
        assert http.get(f"/evaluations/{evaluation_id}", headers=tag).status_code == 304
        assert http.get(f"/jobs/{evaluation_id}/result").json()["n_runs"] == 39

    def test_a_calibration_is_none(self, http, body):
        """404, which says what it is."""
        job_id = http.post("/calibrate", json=body).json()["id"]
        answer = http.get(f"/evaluations/{job_id}")

        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
        assert "kind calibration" in answer.json()["detail"]

    def test_the_list_has_evaluations_only(self, http, body):
        """Newest first, page by page."""
        ids = [
            http.post("/evaluations", json=body | {"seeds": 2 + n}).json()["id"]
            for n in range(3)
        ]
        http.post("/calibrate", json=body)

        first = http.get("/evaluations?limit=2").json()
        second = http.get(f"/evaluations?limit=2&cursor={first['next_cursor']}").json()

        listed = [job["id"] for page in (first, second) for job in page["data"]]
        assert listed == sorted(ids, reverse=True)
        assert second["next_cursor"] is None

    def test_it_has_no_plan_of_its_own(self, http, body, evaluation_id, store, found):
        """What asks for a plan is told so."""
        store.start(evaluation_id, 1, worker="w")
        store.succeed(evaluation_id, 1, found)

        answers = [
            http.post(f"/jobs/{evaluation_id}/allocate", json={"budget": 4}),
            http.get(f"/jobs/{evaluation_id}/diff/{evaluation_id}"),
            http.put("/rank-patterns/a/b", json={"job_id": evaluation_id}),
        ]

        assert [a.json()["code"] for a in answers] == ["no_pattern"] * 3

    def test_it_is_canceled_and_deleted_as_any_job(self, http, evaluation_id):
        """By the routes of jobs."""
        canceled = http.post(f"/jobs/{evaluation_id}/cancel")

        assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
        assert http.delete(f"/jobs/{evaluation_id}").status_code == 204
        assert http.get(f"/evaluations/{evaluation_id}").status_code == 404

    def test_a_retry_is_one_again(self, http, evaluation_id, store):
        """Of the same kind, on the same content, and what is finished is not trained again."""
        runs = Runs(store, evaluation_id)
        runs.prepare({"fim": []})
        runs.keep("a", {"loss": 0.5})
        http.post(f"/jobs/{evaluation_id}/cancel")
        again = http.post(f"/jobs/{evaluation_id}/retry").json()

        assert again["kind"] == "evaluation"
        assert Runs(store, again["id"]).results() == {"a": {"loss": 0.5}}
        assert again["resolved"] == http.get(f"/evaluations/{evaluation_id}").json()["resolved"]

    def test_a_retry_has_its_runs_before_a_worker_can_take_it(
        self, http, evaluation_id, store, monkeypatch
    ):
        """As soon as it is in the queue; no worker may train a finished run again."""
        runs, seen = Runs(store, evaluation_id), []
        runs.prepare({"fim": []})
        runs.keep("a", {"loss": 0.5})
        http.post(f"/jobs/{evaluation_id}/cancel")
        enqueue = Queue.enqueue

        def look(queue, *args, job_id, **more):
            seen.append(Runs(store, job_id.rpartition("-")[0]).results())
            return enqueue(queue, *args, job_id=job_id, **more)

        monkeypatch.setattr(Queue, "enqueue", look)
        http.post(f"/jobs/{evaluation_id}/retry")

        assert seen == [{"a": {"loss": 0.5}}]


class TestRefusing:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"methods": ["best"]}, "methods"),
            ({"seeds": 1}, "must be at least 2"),
            ({"learning_rates": [0.002, 0.001]}, "ascending"),
            ({"learning_rates": [0.001]}, "at least 2"),
            ({"seeds": 100, "methods": ["fim", "spectral"], "plans": {"mine": "a/b"}}, "530 runs"),
            ({"eval_split": "test"}, "eval_split is for datasets of the hub"),
            ({"eval_share": 0.1, "eval_dataset": "local:x"}, "give one of them"),
            ({"eval_dataset": {"source": "inline", "rows": [{"text": "a"}]}}, "upload its rows"),
            ({"allocation": {"method": "spectral"}}, "give it in methods"),
            ({"adapter": {"weights": True}}, "no adapter is written"),
            ({"plans": {"uniform": "a/b"}}, "give other names"),
            ({"plans": {"mine": "../b"}}, "plans"),
            ({"plan": {}}, "plan"),
            ({"eval_share": 1.0}, "less than 1"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )  # fmt: skip
    def test_what_makes_no_evaluation_is_refused(self, http, body, wrong, said):
        """422, and the sentence says what is allowed."""
        answer = http.post("/evaluations", json=body | wrong)

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert said in answer.text

    def test_rows_of_a_run_are_limited_by_their_product(self, http, body):
        """Steps and batch size are each allowed, but not both at once; the limit itself is."""
        wrong = http.post("/evaluations", json=body | {"steps": 1_000_000, "batch_size": 1024})
        most = body | {"steps": MOST_TRAINED_ROWS // 8, "batch_size": 8}

        assert (wrong.status_code, wrong.json()["code"]) == (422, "validation_failed")
        assert "1,024,000,000 rows in each run; at most 1,000,000" in wrong.text
        assert EvaluationRequest.model_validate(most)
        with pytest.raises(ValueError, match="1,000,008 rows in each run"):
            EvaluationRequest.model_validate(most | {"steps": most["steps"] + 1})

    def test_runs_are_counted_with_a_grid_that_is_widened_at_both_ends(self, http, body):
        """So that an evaluation that was accepted never has more than are allowed."""
        most = body | {"seeds": 100, "methods": ["fim", "spectral"]}  # 4 arms x (6 + 100)
        request = EvaluationRequest.model_validate(most)

        assert (request.n_runs, request.most_runs) == (416, 424)
        assert request.most_runs < MOST_RUNS
        assert http.post("/evaluations", json=most).status_code == 202

    @pytest.mark.parametrize(
        ("rows", "more", "said"),
        [
            (30, {}, "6 rows would be held out; at least 8"),
            (
                20,
                {"eval_share": 0.5},
                "10 rows are left to train on, fewer than one batch of 16",
            ),
        ],
        ids=["held-out", "train"],
    )
    def test_too_few_rows_are_refused(self, http, body, rows, more, said):
        """Before anything is queued."""
        few = {"source": "inline", "rows": body["dataset"]["rows"][:rows]}
        answer = http.post("/evaluations", json=body | {"dataset": few} | more)

        assert (answer.status_code, answer.json()["code"]) == (422, "dataset_schema")
        assert said in answer.json()["detail"]

    def test_what_a_calibration_is_refused_for_is_refused_here(self, http, body):
        """By the same code, with the same answer but for the route."""
        for wrong in ({"base_model": "none"}, {"dataset": "local:none"}, {"budget": 0},
                      {"budget": 4000, "target_modules": ["query"]}):  # fmt: skip
            here, there = (
                http.post(route, json=body | wrong).json() | {"instance": 0, "request_id": 0}
                for route in ("/evaluations", "/calibrate")
            )

            assert here == there

    def test_held_out_rows_must_be_others_of_the_same_task(self, http, body, data_dir):
        """Equal content and rows without labels are refused; other rows are accepted."""
        datasets = data_dir / "datasets"
        datasets.mkdir(exist_ok=True)
        text = "".join(f'{{"text": "t {n}", "label": {n % 2}}}\n' for n in range(40))
        (datasets / "train.jsonl").write_text(text)
        (datasets / "test.jsonl").write_text(text.replace("t ", "u "))
        (datasets / "plain.jsonl").write_text("".join('{"text": "t"}\n' for _ in range(40)))
        train = body | {"dataset": "local:train.jsonl"}

        answers = {
            name: http.post(
                "/evaluations", json=train | {"eval_dataset": f"local:{name}.jsonl"}
            )
            for name in ("train", "plain", "test")
        }

        assert "the ones that are trained on" in answers["train"].json()["detail"]
        assert "'label': 'label'}, the held-out rows" in answers["plain"].json()["detail"]
        assert answers["test"].status_code == 202
        assert answers["test"].json()["resolved"]["held_out"]["rows"] == 40

    @pytest.mark.parametrize(
        ("names", "columns", "said"),
        [
            (("text", "label", "gold"), {"label": "gold"}, "'label': 'gold'}"),
            (("sentence", "label"), {}, "{'text': 'sentence', 'label': 'label'}"),
        ],
        ids=["another-label", "another-text"],
    )
    def test_held_out_rows_are_read_by_the_same_columns(
        self, http, body, data_dir, names, columns, said
    ):
        """Others would be tested on silently, or as nothing; the answer names both."""
        datasets = data_dir / "datasets"
        datasets.mkdir(exist_ok=True)
        text, *labels = names
        rows = [{text: f"u {n}", **dict.fromkeys(labels, n % 2)} for n in range(40)]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (datasets / "test.jsonl").write_text(lines)
        held_out = {"source": "local", "name": "test.jsonl", "columns": columns}

        answer = http.post("/evaluations", json=body | {"eval_dataset": held_out})

        assert (answer.status_code, answer.json()["code"]) == (422, "dataset_schema")
        assert "{'text': 'text', 'label': 'label'}, the held-out" in answer.json()["detail"]
        assert said in answer.json()["detail"]


class TestGivenPlans:
    def test_a_plan_is_named_by_digest_job_or_pin(self, http, body, data_dir, store):
        """All three become the digest, and the default method gives way."""
        kept = make_result(data_dir)
        job_id = http.post("/calibrate", json=body).json()["id"]
        store.start(job_id, 1, worker="w")
        store.succeed(job_id, 1, kept)
        http.put("/rank-patterns/mine/prod", json={"job_id": job_id})
        budget = {"parameters": kept["rank_map"]["spent"]["parameters"]}
        plans = {"a": kept["digest"], "b": job_id, "c": "mine/prod"}

        answer = http.post("/evaluations", json=body | {"budget": budget, "plans": plans})

        assert answer.status_code == 202, answer.text
        assert answer.json()["resolved"]["plans"] == dict.fromkeys("abc", kept["digest"])
        request = EvaluationRequest.model_validate(body | {"plans": plans})
        assert request.arms == ("a", "b", "c", "uniform", "random")

    def test_a_plan_that_spends_otherwise_is_refused(self, http, body, data_dir):
        """The answer has the budget that fits it, and that budget is accepted."""
        kept = make_result(data_dir, budget=6)
        wrong = http.post("/evaluations", json=body | {"plans": {"mine": kept["digest"]}})
        spent = kept["rank_map"]["spent"]["parameters"]

        assert (wrong.status_code, wrong.json()["code"]) == (422, "budget_infeasible")
        assert f'give budget {{"parameters": {spent}}}' in wrong.json()["detail"]
        right = body | {"plans": {"mine": kept["digest"]}, "budget": {"parameters": spent}}
        assert http.post("/evaluations", json=right).status_code == 202

    def test_plans_for_other_modules_are_refused(self, http, body, data_dir):
        """They cannot be compared at one budget."""
        one = make_result(data_dir)
        other = make_result(data_dir, statistics=make_statistics(n_layers=3))
        plans = {"one": one["digest"], "other": other["digest"]}
        answer = http.post("/evaluations", json=body | {"plans": plans})

        assert (answer.status_code, answer.json()["code"]) == (422, "budget_infeasible")
        assert "different modules" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"target_modules": ["query", "value"]}, "plan 'mine' adapts no 'value'"),
            ({"target_modules": ["value"]}, "which target_modules=['value'] and"),
            (
                {
                    "target_modules": ["query", "value"],
                    "exclude_modules": ["1.attention.self.query"],
                },
                "plan 'mine' adapts 'encoder.layer.1.attention.self.query'",
            ),
        ],
        ids=["fewer", "other", "excluded"],
    )
    def test_a_plan_for_other_modules_than_are_named_is_refused(
        self, http, body, data_dir, asked, said
    ):
        """The controls would adapt those; the module is named, and what was made is accepted."""
        names = [f"encoder.layer.{n}.attention.self.query" for n in range(2)]
        modules = tuple(TargetModule(name, 16, 16) for name in names)
        one = replace(
            make_statistics(),
            modules=modules,
            row_energies={m.name: np.full(16, n + 1.0) for n, m in enumerate(modules)},
            example_energies={},
        )
        kept = make_result(data_dir, statistics=one, budget=4)
        plans = {"budget": 4, "plans": {"mine": kept["digest"]}}
        answer = http.post("/evaluations", json=body | plans | asked)
        right = http.post("/evaluations", json=body | plans | {"target_modules": ["query"]})

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert said in answer.json()["detail"]
        assert right.status_code == 202, right.text

    @pytest.mark.parametrize("is_fused", [True, False])
    def test_a_plan_for_some_experts_is_refused(self, http, body, data_dir, is_fused):
        """Random ones beside them are planned by methods; fused ones say so, others their plan."""
        names = ("up", "down") if is_fused else [f"{n}.up" for n in range(4)]
        modules = tuple(
            TargetModule(f"layers.0.experts.{name}", 16, 16, n_experts=4 if is_fused else None)
            for name in names
        )
        rows = 4 if is_fused else 16
        whole = replace(
            make_statistics(),
            modules=modules,
            row_energies={m.name: np.arange(1.0, rows + 1) for m in modules},
            example_energies={},
        )
        some = select_experts(whole, "fisher", share=0.5)
        kept = make_result(data_dir, statistics=some, budget=4)
        spent = {"parameters": kept["rank_map"]["spent"]["parameters"]}
        plans = {"budget": spent, "plans": {"mine": kept["digest"]}}

        answer = http.post("/evaluations", json=body | plans)

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert "plan 'mine' trains some experts" in answer.json()["detail"]
        assert "give methods and allocation.experts" in answer.json()["detail"]

    def test_a_plan_of_multiples_may_be_off_by_one(self, http, body, data_dir):
        """One step is as many ranks as a plan adds at once; without, it is one rank."""
        kept = make_result(data_dir, budget=16, multiple_of=8)
        spent = kept["rank_map"]["spent"]["parameters"]
        asked = body | {
            "budget": {"parameters": spent + 7 * 128},
            "plans": {"mine": kept["digest"]},
        }

        coarse = http.post("/evaluations", json=asked | {"allocation": {"multiple_of": 8}})
        fine = http.post("/evaluations", json=asked)

        assert coarse.status_code == 202, coarse.text
        assert fine.json()["code"] == "budget_infeasible"

    def test_a_plan_of_another_scale_is_refused(self, http, body, data_dir):
        """That is another learning rate; the answer has the scale to ask for."""
        kept = make_result(data_dir)
        spent = {"parameters": kept["rank_map"]["spent"]["parameters"]}
        plans = body | {"budget": spent, "plans": {"mine": kept["digest"]}}
        answer = http.post("/evaluations", json=plans | {"adapter": {"scale": 4}})

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert 'give adapter {"scale": 2}' in answer.json()["detail"]

    @pytest.mark.parametrize("reference", ["sha256:" + "0" * 64, "none/none"])
    def test_a_plan_that_is_not_there_is_refused(self, http, body, reference):
        """404, and nothing is queued."""
        answer = http.post("/evaluations", json=body | {"plans": {"mine": reference}})

        assert (answer.status_code, answer.json()["code"]) == (404, "no_pattern")


class TestEstimate:
    def test_it_tells_runs_and_steps_and_leaves_no_job(self, http, body, redis_client):
        """With ``validate_only``; no time before one was measured."""
        answer = http.post("/evaluations", json=body | {"validate_only": True, "steps": 10})
        told = answer.json()

        assert (answer.status_code, redis_client.keys("fimlora:job*")) == (200, [])
        assert (told["n_arms"], told["n_runs"], told["most_runs"]) == (3, 27, 33)
        assert (told["n_steps"], told["train_s"]) == (10, None)

    def test_no_signal_is_measured_so_none_is_counted(self, http, body):
        """Nothing that is found states one; a calibration counts its memory."""

        def need(route, signal):
            asked = body | {"calibration": {"signal": signal}, "validate_only": True}
            method = {"methods": ["spectral"]}
            if route == "/calibrate":
                method = {"allocation": {"method": "spectral"}}
            answer = http.post(route, json=asked | method)
            assert answer.status_code == 200, answer.text
            return answer.json()["memory"]

        assert need("/evaluations", True) == need("/evaluations", False)
        assert need("/calibrate", True) != need("/calibrate", False)
        request = EvaluationRequest.model_validate(body)
        assert (request.calibration.signal, request.measures_signal) == (True, False)

    def test_time_is_told_from_measured_steps(self, http, body, store):
        """Of the same model, batch size and length only."""
        only = body | {"validate_only": True, "steps": 10}
        digest = http.post("/evaluations", json=only).json()["resolved"]["base_model"]["digest"]
        request = EvaluationRequest.model_validate(body)
        note_step_seconds(store, request, model_digest=digest, seconds=0.5)

        same = http.post("/evaluations", json=only).json()
        other = http.post("/evaluations", json=only | {"batch_size": 4}).json()

        assert same["train_s"] == pytest.approx(0.5 * 10 * 27)
        assert other["train_s"] is None


@pytest.mark.parametrize("name", EVALUATION_EXAMPLES)
def test_an_example_is_a_request(name):
    """What the reference shows can be sent."""
    example = EVALUATION_EXAMPLES[name]["value"]

    assert EvaluationRequest.model_validate(example).model_fields_set == set(example)


def test_an_upload_that_is_held_out_is_in_use(http, body):
    """It cannot be deleted while the evaluation is open."""
    rows = "".join(f'{{"text": "x {n}", "label": {n % 2}}}\n' for n in range(20))
    headers = {"content-type": "application/x-ndjson"}
    upload = http.post("/datasets", content=rows, headers=headers).json()["id"]
    job_id = http.post("/evaluations", json=body | {"eval_dataset": upload}).json()["id"]

    refused = http.delete(f"/datasets/{upload}")

    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_in_use")
    http.post(f"/jobs/{job_id}/cancel")
    assert http.delete(f"/datasets/{upload}").status_code == 204


def test_hands_in_the_queue_are_no_attempts(redis_client):
    """They are passed over by whoever looks after attempts."""
    transport = RqTransport(redis_client)
    redis_client.rpush(f"rq:queue:{QUEUE_NAME}", "job_1-hand_2", "job_1-3")

    assert transport.waiting() == {("job_1", 3)}
