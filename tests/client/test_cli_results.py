"""Commands that work with results: other plans, pins, and fetching what is not here yet."""

import json
from datetime import datetime

import httpx2
import pytest
from typer.testing import CliRunner

from fimlora_client import Client
from fimlora_client.cli import app
from fimlora_client.cli.common.context import Connection
from fimlora_contract.jobs import JobError

REQUEST = ["calibrate", "tiny", "--batches", "2"]


@pytest.fixture
def calibrate(run, rows):
    """Ids of jobs that have succeeded, by mean rank."""
    known = {}

    def calibrate(rank=4):
        if rank not in known:
            result = run(*REQUEST, rows, "--budget", rank, "--json")
            assert result.exit_code == 0, result.output
            known[rank] = json.loads(result.stdout)["id"]
        return known[rank]

    return calibrate


@pytest.fixture
def queued(run, rows):
    """A job that nobody has worked on."""
    return run(*REQUEST, rows, "--budget", 4, "--no-wait").stdout.strip()


def state_of(folder):
    """Everything in a folder, with the time of its last change."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }


class TestFetchingPatterns:
    def test_a_pin_is_sent_once(self, run, calibrate, tmp_path):
        """200 with the text, then 304 with nothing, and the file is left untouched."""
        run("pin", "task", "prod", calibrate())
        folder = tmp_path / "ci"
        command = [
            "fetch",
            "-v",
            "--pin",
            "task:prod",
            "--format",
            "axolotl",
            "-o",
            folder / "f",
        ]

        first = run(*command)
        before = state_of(folder)
        second = run(*command)

        assert (first.exit_code, second.exit_code) == (0, 0)
        assert "< 200" in first.stderr
        assert "if-none-match" not in first.stderr
        assert "< 304" in second.stderr
        assert "> if-none-match: " in second.stderr
        assert "left untouched" in second.stderr
        assert first.stdout.strip() == second.stdout.strip() == str(folder / "f")
        assert state_of(folder) == before
        assert set(before) == {"f", "f.etag"}
        assert b"lora_rank_pattern" in before["f"][0]

    def test_what_is_not_right_any_more_is_fetched(self, run, calibrate, tmp_path):
        """A tag speaks for the bytes it came with, for nothing else."""
        file, tag = tmp_path / "f", tmp_path / "f.etag"
        command = ["fetch", calibrate(), "--format", "json", "--output", file]
        run(*command)
        fetched = file.read_bytes()
        spoils = [
            lambda: file.write_text("mine"),
            file.unlink,
            tag.unlink,
            lambda: tag.write_text("[]"),
        ]

        for spoil in spoils:
            spoil()
            again = run(*command)

            assert again.exit_code == 0
            assert "left untouched" not in again.stderr
            assert file.read_bytes() == fetched

    def test_a_moved_pin_is_fetched(self, run, calibrate, tmp_path):
        """Its history keeps both results, the newest first."""
        command = ["fetch", "--pin", "task:prod", "--output", tmp_path / "f"]
        digests = []
        for rank in (4, 5):
            run("pin", "task", "prod", calibrate(rank))
            assert run(*command).exit_code == 0
            digests.append(json.loads((tmp_path / "f").read_text())["digest"])

        history = json.loads(run("pin", "task", "prod", "--json").stdout)["history"]
        shown = run("pin", "task", "prod").stdout

        assert len(set(digests)) == 2
        assert [entry["digest"] for entry in history] == digests[::-1]
        assert shown.index(digests[1]) < shown.index(digests[0])

    def test_all_pins_are_listed(self, run, calibrate):
        """By name, with what each stands for; before the first one the next step."""
        nothing = run("pins")
        digest = run("pin", "task", "prod", calibrate()).stdout.strip()
        run("pin", "another", "prod", digest)

        shown = run("pins").stdout
        listed = json.loads(run("pins", "list", "--json").stdout)

        assert "fimlora pin NAME TAG" in nothing.stderr
        assert shown.index("another:prod") < shown.index("task:prod")
        assert digest[:19] in shown
        assert [(pin["name"], pin["digest"]) for pin in listed] == [
            ("another", digest), ("task", digest),
        ]  # fmt: skip

    def test_a_calibration_can_be_pinned_at_once(self, run, rows):
        """Which needs the result, so it waits."""
        command = [*REQUEST, rows, "--budget", 4, "--pin", "task:prod"]

        without = run(*command, "--no-wait")
        pinned = run(*command, "--json")

        assert without.exit_code == 2
        assert "task:prod stands for this result" in pinned.stderr
        digest = json.loads(pinned.stdout)["result"]["digest"]
        assert json.loads(run("fetch", "--pin", "task:prod").stdout)["digest"] == digest

    def test_every_way_of_naming_a_result_leads_to_it(self, run, calibrate, client):
        """By job, content, pin and inputs; without --output it goes to standard output."""
        job_id = calibrate()
        digest = run("pin", "task", "prod", job_id).stdout.strip()
        dataset = client.jobs.retrieve(job_id).request["dataset"]["id"]
        inputs = ["--model", "tiny", "--dataset", dataset]

        found = [
            run("fetch", *which)
            for which in (
                [job_id, "--format", "json"], ["--digest", digest], ["--pin", "task:prod"],
                inputs, [*inputs, "--budget", "4"], [*inputs, "--budget", "rank:4"],
            )
        ]  # fmt: skip

        assert {json.loads(result.stdout)["digest"] for result in found} == {digest}
        assert run("pin", "task", "again", digest).stdout.strip() == digest

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 2, "which result?"),
            (["job_1", "--pin", "a:b"], 2, "exactly one of"),
            (["--pin", "task"], 2, "NAME:TAG"),
            (["--model", "tiny"], 2, "--dataset"),
            (["--pin", "a:b", "--format", "toml"], 2, "axolotl"),
            (["job_1"], 2, "--output DIR"),
            (["--pin", "a:b", "--format", "adalora"], 2, "needs --steps"),
            (["--pin", "a:b", "--steps", "9"], 2, "for --format adalora only"),
            (["--pin", "a:b", "--format", "peft", "--accumulation", "2"], 2, "adalora only"),
            (["job_1", "--steps", "9"], 2, "for --format adalora only"),
            (["--pin", "nobody:prod"], 3, "nothing is pinned as nobody/prod"),
            (["--digest", "sha256:" + "0" * 64], 3, "no result with digest"),
            (["--model", "tiny", "--dataset", "none"], 3, "no job has succeeded for"),
            (["--digest", "latest"], 2, "64 hexadecimal digits"),
            (["--digest", ""], 2, "64 hexadecimal digits"),
            (["--pin", "task/v1:prod"], 2, "name: 'task/v1' cannot be one"),
        ],
    )
    def test_a_mistake_says_what_to_do(self, run, tmp_path, arguments, code, message):
        """With an exit code that tells wrong usage from what is not there."""
        result = run("fetch", *arguments)

        assert result.exit_code == code, result.output
        assert message in " ".join(result.stderr.split())
        assert result.stdout == ""

    def test_adalora_is_for_a_training_of_so_many_steps(self, run, calibrate):
        """A large number goes over the wire as it is, and the weight is divided."""
        asked = ["--format", "adalora", "--steps", 1_234_567, "--accumulation", 4]

        config = json.loads(run("fetch", calibrate(), *asked).stdout)

        assert (config["peft_type"], config["total_step"]) == ("ADALORA", 1_234_567)
        assert config["orth_reg_weight"] == 0.125
        assert config["init_r"] > config["target_r"]

    def test_a_file_that_cannot_be_written_is_named(self, run, calibrate, tmp_path):
        """A folder is where a file should go."""
        result = run("fetch", calibrate(), "--format", "peft", "--output", tmp_path)

        assert result.exit_code == 1
        assert f"cannot write {tmp_path}" in result.stderr

    def test_a_failed_job_and_an_open_one_have_their_own_exit_codes(self, run, queued, store):
        """Also when a pattern is asked for."""
        command = ["fetch", queued, "--format", "peft"]
        early = run(*command)
        store.start(queued, 1, worker="test")
        store.fail(queued, 1, JobError(code="worker_lost", detail="the worker was lost"))
        failed = run(*command)

        assert (early.exit_code, failed.exit_code) == (5, 4)
        assert "fimlora retry" in run("show", queued).stderr


def test_a_second_fetch_leaves_the_files_of_a_job_untouched(run, calibrate, tmp_path):
    """Only what is missing or altered is sent again."""
    folder = tmp_path / "adapter"
    command = ["fetch", calibrate(), "--output", folder]
    run(*command)
    before = state_of(folder)
    same = run(*command)
    assert state_of(folder) == before
    (folder / "rank_map.json").write_text("{}")

    mended = run("fetch", "-v", *command[1:])

    assert f"{len(before)} of {len(before)} files were right" in same.stderr
    assert state_of(folder)["rank_map.json"][0] == before["rank_map.json"][0]
    assert mended.stderr.count("/artifacts/") == 1
    assert set(mended.stdout.split()) == {str(folder / name) for name in before}


def test_another_plan_is_shown_at_once(run, calibrate):
    """The plan is the one that a calibration with that budget gives."""
    job_id = calibrate()

    shown = run("plan", job_id, "--budget", 6, "--r-max", 9)
    plan = json.loads(run("plan", job_id, "--budget", 5, "--json").stdout)
    refused = run("plan", job_id, "--budget-parameters", 1)

    assert "mean rank 6, each 3 to 9" in shown.stdout
    ranks = {module["name"]: module["rank"] for module in plan["rank_map"]["modules"]}
    other = json.loads(run("show", calibrate(5), "--json").stdout)["result"]["rank_map"]
    assert ranks == {module["name"]: module["rank"] for module in other["modules"]}
    assert refused.exit_code == 1
    assert "1" in refused.stderr
    assert run("plan", job_id).exit_code == 2


def test_an_estimate_is_a_page_to_read(run, rows, calibrate):
    """Before a job it says what is needed, after it that all is known."""
    command = [*REQUEST, rows, "--budget", 4, "--target-modules", "query,value", "--estimate"]

    before = run(*command)
    found = json.loads(run(*command, "--json").stdout)

    assert before.exit_code == 0, before.output
    assert "measured by a worker" in before.stdout
    assert "4 target modules" in before.stdout
    assert "feasible; rank from" in before.stdout
    assert max(map(len, before.stdout.splitlines())) <= 80
    assert found["outcome"] == "measured"
    assert "no jobs yet" in run("jobs").stderr
    job_id = calibrate()
    assert f"known already, by {job_id}" in run(*REQUEST, rows, "-b", 4, "--estimate").stdout


def test_an_estimate_names_the_open_job_it_would_share(run, rows, queued):
    """Asking for the same twice costs one calibration."""
    shown = run(*REQUEST, rows, "-b", 4, "--estimate")

    assert f"the open job of an equal request, by {queued}" in " ".join(shown.stdout.split())


def test_the_ranks_of_two_jobs_are_compared(run, calibrate):
    """Module by module and in a sentence."""
    a, b = calibrate(), calibrate(8)

    shown = run("diff", a, b, "--limit", 1)
    found = json.loads(run("diff", a, b, "--json").stdout)

    assert f"{found['drift']['n_changed']} of 4 modules differ" in shown.stdout
    assert "16 ranks before, 32 after" in shown.stdout
    assert found["modules"][0]["name"] in shown.stdout
    assert "more with" in shown.stderr
    assert "no rank differs" in run("diff", a, a).stdout
    assert run("diff", a, "job_none").exit_code == 3


def test_a_canceled_job_is_queued_again_and_forgotten(run, queued, run_queue):
    """The new job has its own id; only one that has ended can be forgotten."""
    open_ = run("delete", queued)
    run("cancel", queued)
    again = run("retry", queued).stdout.strip()
    run_queue()

    assert open_.exit_code == 5
    assert again.startswith("job_")
    assert again != queued
    assert run("delete", queued).exit_code == 0
    assert run("show", queued).exit_code == 3
    assert run("retry", again).exit_code == 1


def test_what_has_happened_is_told(run, queued, run_queue):
    """A line per event, as text and as JSON, whole pages or as it happens."""
    run_queue()

    told = run("events", queued).stdout.splitlines()
    followed = run("events", queued, "--follow", "--json").stdout.splitlines()

    assert "queued" in told[0]
    assert "succeeded" in told[-1]
    assert any("batch 2 of 2" in line for line in told)
    assert [json.loads(line)["id"] for line in followed] == [line.split()[2] for line in told]
    for line in map(json.loads, followed):
        assert datetime.fromisoformat(line["at"]).timestamp() * 1000 == int(
            line["id"].split("-")[0]
        )
    assert all(datetime.fromisoformat(line[:19]) for line in told)


def test_only_the_jobs_that_are_wanted_are_listed(run, rows):
    """By label, status and model; nothing that fits is said as such."""
    asked = ["calibrate", "tiny", rows, "--budget", "4", "--no-wait"]
    mine = run(*asked, "--label", "team=nlp", "--label", "run=a=b").stdout.strip()
    other = run(*asked, "--seed", "1").stdout.strip()
    run("cancel", other)

    def ids(*filters):
        return [job["id"] for job in json.loads(run("jobs", "--json", *filters).stdout)]

    assert ids() == [other, mine]
    assert ids("--label", "team=nlp") == ids("--label", "run=a=b") == [mine]
    assert ids("--status", "canceled") == [other]
    assert ids("--status", "canceled", "--status", "queued") == [other, mine]
    assert ids("--model", "tiny", "--label", "team=nlp") == [mine]
    assert ids("--model", "org/other") == []
    assert (
        "no such jobs; all of them:  fimlora jobs" in run("jobs", "--status", "failed").stderr
    )
    assert "KEY=VALUE" in run("jobs", "--label", "nlp").stderr


def test_the_files_of_a_result_are_listed(run, calibrate):
    """With their sizes and digests."""
    shown = run("artifacts", calibrate())
    files = json.loads(run("artifacts", calibrate(), "--json").stdout)

    assert all(file["name"] in shown.stdout for file in files)
    assert {"adapter_config.json", "rank_map.json"} <= {file["name"] for file in files}


def test_the_service_tells_how_it_is(run):
    """Without workers it takes jobs, and says that they wait."""
    status, workers = run("status"), run("workers")

    assert status.exit_code == 0
    assert status.stdout.startswith("degraded")
    assert "no live worker" in status.stdout
    assert json.loads(run("status", "--json").stdout)["checks"]["redis"] == "ok"
    assert "fimlora up" in workers.stderr
    assert json.loads(run("workers", "--json").stdout) == []


def test_workers_fit_a_terminal_of_eighty_columns(terminal):
    """One on a GPU with a long name, busy with a job whose id can be copied, and an idle one."""
    since = {"since": 0, "started_at": 0, "last_seen": 0}
    gpu = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85e9}
    busy = {"name": "gpu-worker-17-4f2a", "state": "busy", "job_id": f"job_{'f' * 23}"} | gpu
    idle = {"name": "vm-1", "state": "idle", "device": "cpu"}
    page = {"data": [busy | since, idle | since]}
    transport = httpx2.MockTransport(lambda _request: httpx2.Response(200, json=page))

    with httpx2.Client(transport=transport, base_url="http://fimlora.test") as http:
        connection = Connection(connect=lambda: Client(http=http))
        shown = CliRunner().invoke(app, ["workers"], obj=connection).stdout

    assert max(map(len, shown.splitlines())) <= 80
    assert busy["name"] in shown
    assert busy["job_id"] in shown
    assert "85.0 GB" in shown
    assert "idle" in shown


def test_tables_fit_a_terminal_of_eighty_columns(run, calibrate, client):
    """And no id is cut, or it could not be copied."""
    job_id = calibrate()
    dataset = client.jobs.retrieve(job_id).request["dataset"]["id"]
    run("pin", "task", "prod", job_id)
    commands = [
        ["jobs"], ["datasets"], ["models"], ["artifacts", job_id], ["pin", "task", "prod"],
        ["diff", job_id, calibrate(8)], ["status"],
    ]  # fmt: skip

    tables = {words[0]: run(*words).stdout for words in commands}

    lengths = {name: max(map(len, table.splitlines())) for name, table in tables.items()}
    assert max(lengths.values()) <= 80, lengths
    assert job_id in tables["jobs"]
    assert dataset in tables["datasets"]
