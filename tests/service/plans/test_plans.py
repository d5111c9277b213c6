"""POST /jobs/{id}/allocate."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fimlora import allocate, score
from fimlora.methods.registry import METHODS
from support.results import make_result, make_statistics, with_null_and_halves

ROOT = Path(__file__).parents[3]


@pytest.fixture
def measured(store, data_dir, job_id):
    """A job with real statistics; the function takes what `make_result` takes."""

    def finish(**options):
        store.start(job_id, 1, worker="w")
        result = make_result(data_dir, **options)
        store.succeed(job_id, 1, result)
        return result

    return finish


def of_own_experts(statistics):
    """The same of modules that are experts, a layer of them."""

    def expert(name: str) -> str:
        return name.replace("model.layers.", "model.layers.0.mlp.experts.")

    by_name = {
        field.name: {expert(name): value for name, value in held.items()}
        for field in fields(statistics)
        if isinstance(held := getattr(statistics, field.name), Mapping)
        and statistics.modules[0].name in held
    }
    modules = tuple(replace(m, name=expert(m.name)) for m in statistics.modules)
    return replace(statistics, modules=modules, **by_name)


def ranks_of(answer) -> dict[str, int]:
    return {m["name"]: m["rank"] for m in answer.json()["rank_map"]["modules"]}


class TestAllocate:
    def test_the_settings_of_the_job_give_its_result(self, http, job_id, measured):
        """Same plan, same config, and the very content address of what is stored."""
        result = measured()

        answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": 8})

        assert answer.status_code == 200
        plan = answer.json()
        assert plan["digest"] == result["digest"]
        assert plan["rank_map"] == result["rank_map"]
        assert plan["adapter_config"] == result["adapter_config"]

    @pytest.mark.parametrize(
        ("asked", "options"),
        [
            ({"budget": 5}, {"budget": 5}),
            ({"budget": 8, "allocation": {"aggregation": "max"}}, {"aggregation": "max"}),
            ({"budget": 8, "allocation": {"method": "random", "seed": 3}}, {"method": "random", "seed": 3}),
            ({"budget": 8, "allocation": {"r_min": 2, "r_max": 32, "multiple_of": 2}}, {"r_min": 2, "r_max": 32, "multiple_of": 2}),
            ({"budget": 8, "adapter": {"layout": "C"}}, {"layout": "C"}),
            ({"budget": 8, "adapter": {"alpha": 16}}, {"alpha": 16}),
            ({"budget": 8, "adapter": {"alpha": 24, "rslora": True}}, {"alpha": 24, "rslora": True}),
            ({"budget": 8, "allocation": {"groups": "fused", "rank_menu": "powers-of-two"}}, {"groups": "fused", "rank_menu": "powers-of-two"}),
            ({"budget": 8, "allocation": {"groups": [["layers.0.*"]], "max_lora_rank": 12}}, {"groups": [["layers.0.*"]], "max_lora_rank": 12}),
            ({"budget": 8, "allocation": {"per_type": {"v_proj": {"r_min": 6, "share": 0.4}}}}, {"per_type": {"v_proj": {"r_min": 6, "share": 0.4}}}),
        ],
        ids=str,
    )  # fmt: skip
    def test_other_settings_give_what_a_new_job_would(
        self, http, job_id, measured, data_dir, asked, options
    ):
        """Each setting is honoured: the answer is equal to a result made with it."""
        measured()

        plan = http.post(f"/jobs/{job_id}/allocate", json=asked).json()

        fresh = make_result(data_dir, **options)
        assert plan["rank_map"] == fresh["rank_map"]
        assert plan["adapter_config"] == fresh["adapter_config"]
        assert plan["digest"] == fresh["digest"]

    def test_layers_are_chosen_anew_and_named_in_full(self, http, job_id, measured, data_dir):
        """What a short name would hit in other layers, nobody knows any more."""
        measured()
        asked = {"budget": 4, "allocation": {"method": "fisher-layers", "n_layers": 1}}

        plan = http.post(f"/jobs/{job_id}/allocate", json=asked).json()

        fresh = make_result(data_dir, budget=4, method="fisher-layers", n_layers=1)
        assert plan["rank_map"] == fresh["rank_map"]
        rows = [row for row in plan["rank_map"]["modules"] if row["rank"]]
        assert [row["rank"] for row in rows] == [16] * 3
        assert len({row["layer"] for row in rows}) == 1
        assert plan["adapter_config"]["target_modules"] == sorted(row["name"] for row in rows)
        assert plan["adapter_config"]["rank_pattern"] == {}
        refused = http.post(
            f"/jobs/{job_id}/allocate", json={"budget": 4, "allocation": {"n_layers": 1}}
        )
        assert refused.status_code == 422
        too_many = asked | {"allocation": {"method": "fisher-layers", "n_layers": 5}}
        answer = http.post(f"/jobs/{job_id}/allocate", json=too_many)
        assert answer.status_code == 422
        assert "from 1 to 4" in answer.json()["detail"]

    @pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.record])
    def test_a_method_says_what_the_statistics_lack(self, http, job_id, measured, method):
        """They hold such things only if the job was measured for such a method."""
        measured()
        asked = {"budget": 8, "allocation": {"method": method}}

        answer = http.post(f"/jobs/{job_id}/allocate", json=asked)

        assert answer.status_code == 422
        [needed] = METHODS[method].record
        assert answer.json()["detail"].startswith(f"method '{method}' needs {needed}, and")

    @pytest.mark.parametrize(
        ("allocation", "status", "said"),
        [
            ({"groups": [["nowhere"]]}, 422, "'nowhere' names no target module"),
            ({"per_type": {"v_proj": {"share": 0.9}}}, 422, "a share of 0.9 is 86 of 96 ranks"),
            ({"rank_menu": [17, 20]}, 422, "as a budget: rank from 17 to 20"),
        ],
        ids=str,
    )
    def test_what_cannot_be_met_is_said_by_name(
        self, http, job_id, measured, allocation, status, said
    ):
        """With the interval where there is one."""
        measured()

        answer = http.post(
            f"/jobs/{job_id}/allocate", json={"budget": 8, "allocation": allocation}
        )

        assert answer.status_code == status
        assert said in answer.json()["detail"]

    def test_another_scale_changes_alphas_but_no_rank(self, http, job_id, measured):
        """The scale enters all scores alike; the statistics' file has another digest."""
        measured()
        url = f"/jobs/{job_id}/allocate"

        two = http.post(url, json={"budget": 8})
        four = http.post(url, json={"budget": 8, "adapter": {"scale": 4}})

        assert ranks_of(two) == ranks_of(four)
        pairs = zip(*(a.json()["rank_map"]["modules"] for a in (two, four)), strict=True)
        for first, second in pairs:
            assert second["alpha"] == 2 * first["alpha"]
            assert second["score"] == 4 * first["score"]
        assert two.json()["digest"] != four.json()["digest"]

    def test_another_scale_names_the_file_that_a_job_of_that_scale_writes(
        self, http, job_id, measured, data_dir
    ):
        """With all of its sums, though the plan looks at some only."""
        measured()
        asked = {"budget": 8, "adapter": {"scale": 4}}

        plans = [http.post(f"/jobs/{job_id}/allocate", json=asked).json() for _ in range(2)]

        fresh = make_result(data_dir, statistics=replace(make_statistics(), scale=4))
        assert [plan["digest"] for plan in plans] == [fresh["digest"]] * 2

    def test_another_budget_reads_the_statistics_no_second_time(
        self, http, job_id, measured, data_dir
    ):
        """What is known by content stands; what was never read is still refused."""
        digest = measured()["digest"]
        url = f"/jobs/{job_id}/allocate"
        http.post(url, json={"budget": 8})
        file = data_dir / "artifacts" / digest.replace(":", "-") / "statistics.safetensors"
        file.write_bytes(b"no statistics")

        other = http.post(url, json={"budget": 5})
        unread = http.post(url, json={"budget": 5, "allocation": {"aggregation": "max"}})

        fresh = make_result(data_dir, budget=5)
        assert (other.json()["digest"], unread.status_code) == (fresh["digest"], 404)

    @pytest.mark.parametrize(
        ("asked", "options"),
        [
            ({"budget": 8}, {}),
            ({"budget": 5}, {"budget": 5}),
            ({"budget": 8, "allocation": {"aggregation": "max"}}, {"aggregation": "max"}),
            ({"budget": 8, "allocation": {"multiple_of": 2}}, {"multiple_of": 2}),
        ],
        ids=str,
    )
    def test_the_signal_is_that_of_the_new_plan(
        self, http, job_id, measured, data_dir, asked, options
    ):
        """Computed anew from what was measured; the null is no second measurement."""
        statistics = with_null_and_halves(make_statistics())
        measured(statistics=statistics)

        plan = http.post(f"/jobs/{job_id}/allocate", json=asked).json()

        signal = plan["rank_map"]["signal"]
        fresh = make_result(data_dir, statistics=statistics, **options)
        assert signal == fresh["rank_map"]["signal"]
        assert plan["digest"] == fresh["digest"]
        assert signal["verdict"] in {"task", "weak", "none"}
        null = allocate(
            score(statistics.null, aggregation=options.get("aggregation", "mean")),
            asked["budget"],
            multiple_of=options.get("multiple_of", 1),
        )
        assert signal["null_ranks"] == list(null.ranks.values())

    def test_a_plan_by_no_score_has_no_signal(self, http, job_id, measured):
        """Nor has one of a job that was asked for none: the field is not there."""
        measured(statistics=with_null_and_halves(make_statistics()))
        asked = {"budget": 8, "allocation": {"method": "random"}}

        plan = http.post(f"/jobs/{job_id}/allocate", json=asked).json()

        assert "signal" not in plan["rank_map"]

    def test_a_sampled_estimate_is_replanned_as_such(self, http, job_id, measured):
        """The scores come from what the job recorded."""
        result = measured(statistics=make_statistics(estimator="sampled"))

        answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": 8})

        assert answer.json()["rank_map"]["provenance"]["estimator"] == "sampled"
        assert answer.json()["digest"] == result["digest"]

    def test_both_controls_spend_the_same_budget(self, http, job_id, measured):
        """The answer can be compared with uniform and random ranks at once."""
        measured()

        rank_map = http.post(f"/jobs/{job_id}/allocate", json={"budget": 6}).json()["rank_map"]

        assert rank_map["spent"]["ranks"] == 6 * len(rank_map["modules"])
        for control in ("uniform", "random"):
            assert rank_map["controls"][control]["ranks"] == rank_map["spent"]["ranks"]

    def test_an_infeasible_budget_names_the_interval(self, http, job_id, measured):
        """What only the modules' costs can tell is refused with the feasible interval."""
        measured()

        answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": {"parameters": 10}})

        assert (answer.status_code, answer.json()["code"]) == (422, "budget_infeasible")
        assert "feasible interval" in answer.json()["detail"]

    def test_a_padded_rank_above_all_servers_is_refused(self, http, job_id, measured):
        """Layout C ends at 256: the message says so."""
        measured(statistics=make_statistics(width=600))
        body = {"budget": 300, "adapter": {"layout": "C"}}

        answer = http.post(f"/jobs/{job_id}/allocate", json=body)

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert "256" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "asked",
        [{}, {"budget": 0}, {"budget": 8, "force": True}, {"budget": 2, "allocation": {"r_min": 3}},
         {"budget": 8, "adapter": {"weights": True}}, {"budget": 8, "adapter": {"init": "gora"}}],
        ids=str,
    )  # fmt: skip
    def test_a_wrong_body_is_refused(self, http, job_id, measured, asked):
        """Strict, as everything a client sends."""
        measured()

        assert http.post(f"/jobs/{job_id}/allocate", json=asked).status_code == 422

    def test_a_job_without_a_result_has_no_plans(self, http, job_id):
        """409 until it has succeeded; 404 for one that never was."""
        queued = http.post(f"/jobs/{job_id}/allocate", json={"budget": 8})

        assert (queued.status_code, queued.json()["code"]) == (409, "job_not_finished")
        assert http.post("/jobs/job_0/allocate", json={"budget": 8}).status_code == 404

    @pytest.mark.parametrize("damage", ["gone", "broken"])
    def test_statistics_that_cannot_be_read_are_told(
        self, http, job_id, measured, data_dir, damage
    ):
        """A refusal with the artefact's name, not a fault."""
        digest = measured()["digest"]
        file = data_dir / "artifacts" / digest.replace(":", "-") / "statistics.safetensors"
        file.unlink() if damage == "gone" else file.write_bytes(b"no statistics")

        answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": 8})

        expected = (410, "result_expired") if damage == "gone" else (404, "artifact_not_found")
        assert (answer.status_code, answer.json()["code"]) == expected
        assert "statistics.safetensors" in answer.json()["detail"]

    def test_nothing_is_queued_or_written(self, http, job_id, measured, data_dir, redis_client):
        """A question leaves no trace but the time of last use: no file, no job."""
        measured()
        redis_client.delete("rq:queue:fimlora")
        keys, files = set(redis_client.keys()), set(data_dir.rglob("*"))

        http.post(f"/jobs/{job_id}/allocate", json={"budget": 3})

        assert set(redis_client.keys()) - keys == {b"fimlora:results_used"}
        assert set(data_dir.rglob("*")) == files


MINIMAL = {"Prefer": "return=minimal"}


def draft_from(rank_map: dict[str, Any]) -> dict[str, Any]:
    """What a whole plan's rank map says of what a draft says."""
    modules, controls = rank_map["modules"], rank_map["controls"]
    names = [module["name"] for module in modules]
    uniform = controls.get("uniform")
    same = ("budget", "method", "rule", "r_min", "r_max", "spent")
    return {name: rank_map[name] for name in same} | {
        "ranks": [module["rank"] for module in modules],
        "scores": [module["score"] for module in modules],
        "uniform_ranks": uniform and [uniform["pattern"][name] for name in names],
        "controls": {
            name: {
                "ranks": control["ranks"],
                "parameters": control["parameters"],
                "lowest": min(control["pattern"].values()),
                "highest": max(control["pattern"].values()),
            }
            for name, control in controls.items()
        },
    }


class TestDraft:
    @pytest.mark.parametrize(
        "asked",
        [
            {"budget": 5},
            {"budget": {"parameters": 10_000}},
            {"budget": 8, "allocation": {"r_min": 2, "multiple_of": 2}, "adapter": {"layout": "C"}},
            {"budget": 6, "allocation": {"method": "uniform"}},
            {"budget": 6, "allocation": {"groups": "fused"}, "adapter": {"alpha": 16}},
        ],
        ids=str,
    )  # fmt: skip
    def test_it_has_the_ranks_of_the_whole_plan(self, http, job_id, measured, asked):
        """All that the rank map says, but for what is said of the plan."""
        measured(statistics=with_null_and_halves(make_statistics()))
        url = f"/jobs/{job_id}/allocate"

        draft = http.post(url, json=asked, headers=MINIMAL)
        whole = http.post(url, json=asked)

        assert draft.headers["Preference-Applied"] == "return=minimal"
        assert "Preference-Applied" not in whole.headers
        of_job = http.get(f"/jobs/{job_id}").json()["result"]["rank_map"]
        rank_map = whole.json()["rank_map"]
        assert [m["name"] for m in rank_map["modules"]] == [
            m["name"] for m in of_job["modules"]
        ]
        assert draft.json() == {
            "object": "plan_draft", "job_id": job_id, **draft_from(rank_map),
        }  # fmt: skip

    def test_statistics_of_other_modules_are_refused(self, http, store, job_id, data_dir):
        """Ranks by place would be said of the wrong ones."""
        store.start(job_id, 1, worker="w")
        result = make_result(data_dir)
        result["rank_map"]["modules"].reverse()
        store.succeed(job_id, 1, result)

        answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": 5}, headers=MINIMAL)

        assert answer.status_code == 404
        assert "other modules than its rank map" in answer.json()["detail"]

    def test_an_expert_that_is_not_selected_has_no_rank(self, http, job_id, measured):
        """In the place of its module, where that is one of the job's."""
        measured(statistics=of_own_experts(make_statistics()))
        asked = {
            "budget": 5,
            "allocation": {"experts": {"select": "fisher", "share": 0.5}, "method": "uniform"},
        }
        url = f"/jobs/{job_id}/allocate"

        draft = http.post(url, json=asked, headers=MINIMAL)
        whole = http.post(url, json=asked)

        assert whole.status_code == draft.status_code == 200, draft.text
        of_job = http.get(f"/jobs/{job_id}").json()["result"]["rank_map"]
        ranks = ranks_of(whole)
        assert len(ranks) < len(of_job["modules"])
        assert draft.json()["ranks"] == [ranks.get(m["name"], 0) for m in of_job["modules"]]
        assert draft.json()["spent"] == whole.json()["rank_map"]["spent"]

    def test_an_expert_that_the_job_has_left_out_has_no_place(
        self, http, store, job_id, data_dir
    ):
        """The whole plan is there for the asking."""
        statistics = of_own_experts(make_statistics())
        store.start(job_id, 1, worker="w")
        result = make_result(data_dir, statistics=statistics)
        left_out = result["rank_map"]["modules"].pop(0)["name"]
        result["rank_map"]["not_targeted"] = {
            left_out: "it is of an expert that is not selected"
        }
        store.succeed(job_id, 1, result)

        answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": 5}, headers=MINIMAL)

        assert answer.status_code == 422
        assert "without 'Prefer: return=minimal'" in answer.json()["next_step"]

    @pytest.mark.parametrize(
        "asked",
        [
            {"budget": {"parameters": 10}},
            {"budget": 8, "allocation": {"method": "eva"}},
            {"budget": 8, "allocation": {"groups": [["nowhere"]]}},
            {"budget": 300, "adapter": {"layout": "C"}},
            {"budget": "many"},
        ],
        ids=str,
    )
    def test_it_is_refused_as_the_whole_plan_is(self, http, job_id, measured, asked):
        """Before the slow parts begin."""
        measured(statistics=make_statistics(width=600))
        url = f"/jobs/{job_id}/allocate"

        draft, whole = http.post(url, json=asked, headers=MINIMAL), http.post(url, json=asked)

        assert draft.status_code == whole.status_code == 422
        assert [draft.json()[name] for name in ("code", "detail")] == [
            whole.json()[name] for name in ("code", "detail")
        ]

    @pytest.mark.parametrize("prefer", ["return=representation", "return", "minimal", "wait=5"])
    def test_any_other_preference_gives_the_whole_plan(self, http, job_id, measured, prefer):
        """As a preference is no demand, nothing is refused."""
        measured()

        answer = http.post(
            f"/jobs/{job_id}/allocate", json={"budget": 5}, headers={"Prefer": prefer}
        )

        assert answer.json()["object"] == "plan"


CODE = """
import sys
from pathlib import Path
from support.testclient import TestClient
from redis import Redis
from fimlora_jobs.store import JobStore
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from fimlora.methods.registry import METHODS
from support.results import make_result

url, data = sys.argv[1], Path(sys.argv[2])
store = JobStore(Redis.from_url(url))
with TestClient(create_app(Settings(redis_url=url, data_dir=data))) as http:
    job_id = store.new_id()
    store.create(job_id, request={}, resolved={}, digest="d")
    store.start(job_id, 1, worker="w")
    store.succeed(job_id, 1, make_result(data))
    answer = http.post(f"/jobs/{job_id}/allocate", json={"budget": 4})
    assert answer.status_code == 200, answer.text
heavy = {"torch", "transformers", "peft", "datasets", "fimlora_worker"} & set(sys.modules)
sys.exit(", ".join(heavy) or 0)
"""


@pytest.mark.slow
def test_a_plan_is_solved_without_torch(valkey_url, redis_client, tmp_path):
    """The API process answers a re-plan and has still not loaded a heavy library."""
    folders = ("clients/python", "service", "worker", "tests")
    path = os.pathsep.join(str(ROOT / folder) for folder in folders)

    subprocess.run(
        [sys.executable, "-c", CODE, valkey_url, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
    )
