"""The command line on the real app: what it prints, where, and its exit codes."""

import itertools
import json
import sys

import httpx2
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fimlora_client import Client, RetryPolicy
from fimlora_client.cli import app
from fimlora_client.cli.common.context import Connection
from fimlora_client.context import Context
from fimlora_contract import __version__
from fimlora_contract.jobs import JobError
from fimlora_jobs.datasets.rows import BYTE_ORDER_MARK
from support.jobs import LABELLED, write_jsonl

REQUEST = ["calibrate", "tiny", "--budget", "4", "--batches", "2"]


@pytest.fixture
def job_id(run, rows):
    """A queued job."""
    result = run(*REQUEST, rows, "--no-wait")
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_file_is_uploaded_calibrated_shown_and_kept(run, rows, tmp_path):
    """One command from rows to adapter; the table is all that goes to standard output."""
    folder = tmp_path / "adapter"

    result = run(*REQUEST, rows, "--output", folder)

    assert result.exit_code == 0, result.output
    plan = json.loads((folder / "rank_map.json").read_text())
    shown = [line.split() for line in result.stdout.splitlines() if line.strip()]
    start = next(i for i, line in enumerate(shown) if line[0] == "layer")
    said, lines = shown[:start], shown[start:]
    # First of all, as all else hangs on it.
    assert [*itertools.chain(*said)] == plan["signal"]["sentence"].split()
    assert lines[0] == ["layer", "query", "value", "mean"]
    assert [line[0] for line in lines[1:4]] == ["0", "1", "mean"]
    assert "mean rank 4, each 2 to 8" in result.stdout
    assert "16 of 16 ranks" in result.stdout
    assert "uploaded rows.jsonl as ds_" in result.stderr
    assert "48 rows" in result.stderr
    assert "succeeded" in result.stderr
    assert sum(module["rank"] for module in plan["modules"]) == 16


def test_an_equal_request_says_that_it_was_known(run, rows):
    """The second answer names the first one's job."""
    run(*REQUEST, rows)

    result = run(*REQUEST, rows)

    assert "answered from the cache by job_" in result.stderr
    assert "16 of 16 ranks" in result.stdout


def test_a_byte_order_mark_is_no_part_of_the_rows(run, rows, data_dir):
    """Editors on Windows write one; service and worker read the rows behind it."""
    marked = rows.with_name("marked.jsonl")
    marked.write_bytes(BYTE_ORDER_MARK + rows.read_bytes())
    link = data_dir / "datasets" / "mine"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(marked)

    uploaded, registered = run(*REQUEST, marked), run(*REQUEST, "mine")

    assert uploaded.exit_code == 0, uploaded.output
    assert registered.exit_code == 0, registered.output
    assert "48 rows" in uploaded.stderr
    assert uploaded.stdout == registered.stdout == run(*REQUEST, rows).stdout


def test_json_is_all_that_goes_to_standard_output(run, rows):
    """A script can read it, whatever is said beside it."""
    job = json.loads(run(*REQUEST, rows, "--json").stdout)

    assert job["status"] == "succeeded"
    assert job["result"]["rank_map"]["budget"]["value"] == 4


def test_options_reach_the_request(run, rows):
    """Each option is where the contract wants it; what is left out has its default."""
    options = [
        "--budget-parameters", "4000", "--target-modules", "query, key", "--r-min", "2",
        "--exclude-modules", r".*\.0\..*key", "--modules-to-save", "classifier, pooler",
        "--r-max", "30", "--method", "random", "--aggregation", "l2", "--seed", "7",
        "--rank-menu", "2,4,16", "--group", "query,key", "--group", "layer.1.*", "--max-lora-rank", "16",
        "--per-type", "query:r_min=3,share=0.25", "--per-type", "key:r_max=9", "--batch-size", "3", "--max-length", "16",
        "--estimator", "sampled", "--dtype", "float32", "--layout", "C", "--weights", "--init", "gora", "--scale", "1.5",
        "--column", "text=text", "--column", "tools=", "--task", "regression", "--batches", "5", "--priority", "high",
        "--deadline", "900", "--label", "team=nlp",
        "--executor", "streamed", "--shards", "2", "--chat-labels", "last", "--head", "fresh", "--head-rows", "64",
        "--no-signal", "--tolerance", "0.1", "--max-batches", "32",
    ]  # fmt: skip

    result = run("calibrate", "tiny", rows, *options, "--no-wait", "--json")

    request = json.loads(result.stdout)["request"]
    assert request["budget"]["parameters"] == 4000
    assert (request["priority"], request["deadline_s"]) == ("high", 900)
    assert request["metadata"] == {"team": "nlp"}
    assert request["target_modules"] == ["query", "key"]
    assert request["exclude_modules"] == r".*\.0\..*key"
    assert request["modules_to_save"] == ["classifier", "pooler"]
    assert request["dataset"]["columns"]["text"] == "text"
    assert request["dataset"]["columns"]["tools"] == ""
    assert request["adapter"] == {
        "layout": "C", "scale": 1.5, "alpha": None, "rslora": False, "weights": True,
        "init": "gora",
    }  # fmt: skip
    assert request["allocation"] == {
        "method": "random", "aggregation": "l2", "r_min": 2, "r_max": 30, "multiple_of": 1, "seed": 7,
        "n_layers": None,
        "rank_menu": [2, 4, 16], "groups": [["query", "key"], ["layer.1.*"]], "max_lora_rank": 16,
        "per_type": {
            "query": {"r_min": 3, "r_max": None, "share": 0.25},
            "key": {"r_min": None, "r_max": 9, "share": None},
        },
    }  # fmt: skip
    assert request["calibration"] == {
        "n_batches": 5, "batch_size": 3, "max_length": 16, "estimator": "sampled", "seed": 7,
        "task": "regression", "dtype": "float32", "executor": "streamed", "chat_labels": "last", "shards": 2,
        "head": "fresh", "head_rows": 64, "signal": False, "tolerance": 0.1, "max_batches": 32,
        "adapter": None,
    }  # fmt: skip


def test_a_number_of_layers_reaches_the_request(run, rows):
    """With a method that chooses layers; with another one it is refused."""
    asked = ["calibrate", "tiny", rows, "--budget", "4", "--layers", "1", "--no-wait", "--json"]

    result = run(*asked, "--method", "fisher-layers")
    refused = run(*asked)

    assert json.loads(result.stdout)["request"]["allocation"]["n_layers"] == 1
    assert refused.exit_code
    assert "chooses layers" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--group", "fused", "--group", "a,b"], "--group fused says it all"),
        (["--rank-menu", "2,four"], "give ranks with commas between"),
        (["--per-type", "query:r_min=x"], "r_min and r_max are whole numbers"),
        (["--per-type", "query"], "is not of the form NAME:KEY=VALUE"),
    ],
    ids=str,
)
def test_what_ranks_are_to_keep_to_is_read_or_refused(run, job_id, options, said):
    """Before anything is asked."""
    result = run("plan", job_id, "--budget", "8", *options)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_job_can_be_followed_by_its_id(run, job_id, run_queue, tmp_path):
    """Queued, listed, fetched too early, fetched in time."""
    early = run("fetch", job_id, "--output", tmp_path / "a")
    shown = run("show", job_id)
    run_queue()
    listed = run("jobs")
    assert "…" not in listed.stdout  # all of it in 80 columns
    fetched = run("fetch", job_id, "--output", tmp_path / "a")

    assert (early.exit_code, early.stdout) == (5, "")
    assert "is queued" in early.stderr
    assert "queued" in shown.stdout
    assert job_id in listed.stdout
    assert "rank 4" in listed.stdout
    assert fetched.exit_code == 0
    assert set(fetched.stdout.split()) == {str(path) for path in (tmp_path / "a").iterdir()}
    shown = run("show", job_id).stdout
    assert "16 of 16 ranks" in shown
    assert "measured resident, 8 examples at a time, peak memory " in shown
    assert json.loads(run("show", job_id, "--json").stdout)["id"] == job_id
    assert json.loads(run("jobs", "--json").stdout)[0]["id"] == job_id


def test_a_failed_job_has_its_own_exit_code(run, job_id, store, tmp_path):
    """A script can tell it from a job that is not there."""
    store.start(job_id, 1, worker="test")
    store.fail(job_id, 1, JobError(code="worker_lost", detail="the worker was lost"))

    fetched = run("fetch", job_id, "--output", tmp_path / "a")

    assert fetched.exit_code == 4
    assert f"job {job_id} failed: the worker was lost" in fetched.stderr
    assert "worker_lost: the worker was lost" in run("show", job_id).stdout


def test_a_job_can_be_canceled(run, job_id, tmp_path):
    """Afterwards there is nothing to fetch and nothing to cancel."""
    assert "is canceled" in run("cancel", job_id).stderr
    assert run("fetch", job_id, "--output", tmp_path / "a").exit_code == 4
    again = run("cancel", job_id)
    assert again.exit_code == 1
    assert "has already ended: it is canceled" in again.stderr


@pytest.mark.parametrize("command", [["show"], ["cancel"], ["fetch", "--output", "x"]])
def test_an_unknown_job_is_not_found(run, command):
    """Exit code 3, one line, and what to type next."""
    result = run(*command, "job_none")

    assert result.exit_code == 3
    assert result.stderr.splitlines()[0] == "error no job 'job_none'"
    assert "`fimlora jobs`" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tiny", "ROWS"], 2, "--budget 8"),
        (["tiny", "ROWS", "-b", "4", "--budget-bytes", "9"], 2, "exactly one of"),
        (["tiny", "ROWS", "-b", "4", "--r-min", "9"], 2, "at least r_min=9"),
        (["tiny", "ROWS", "-b", "4", "--method", "fair"], 2, "--method: must be"),
        (["tiny", "ROWS", "-b", "4", "--column", "text"], 2, "ROLE=NAME"),
        (["tiny", "ROWS", "-b", "4", "--split", "test"], 2, "split"),
        (["tiny", "none.jsonl", "-b", "4"], 1, "cannot read none.jsonl"),
        (["tiny", "nothing", "-b", "4"], 3, "no local dataset 'nothing'"),
        (["nobody", "ROWS", "-b", "4"], 3, "no local model 'nobody'"),
        (["./nobody", "ROWS", "-b", "4"], 1, "fimlora models add NAME ./nobody"),
        (["tiny", "ROWS", "-b", "4", "-t", "nope"], 2, "nope"),
    ],
)
def test_a_mistake_is_one_line_and_the_next_step(run, rows, arguments, code, message):
    """And no job is left behind."""
    result = run("calibrate", *[rows if a == "ROWS" else a for a in arguments])

    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert "no jobs yet" in run("jobs").stderr


@pytest.mark.parametrize("place", ["rows.jsonl", "rows.jsonl/adapter", "rows.jsonl/a/b"])
def test_a_folder_that_cannot_be_written_is_refused_first(run, rows, place):
    """Before anything is uploaded or measured; nothing is left beside it."""
    before = sorted(rows.parent.iterdir())

    result = run(*REQUEST, rows, "--output", rows.parent / place)

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error cannot write {rows.parent / place}: Not a directory",
        "      Name another place, or make this one writable.",
    ]
    assert "no jobs yet" in run("jobs").stderr
    assert "no datasets yet" in run("datasets").stderr
    assert sorted(rows.parent.iterdir()) == before


def test_a_typo_costs_no_upload(run, rows):
    """The request is checked before the file is sent."""
    run("calibrate", "tiny", rows, "--budget", "0")

    assert "no datasets yet" in run("datasets").stderr


def test_leaving_a_wait_says_that_the_job_goes_on(http, rows, terminal):
    """Ctrl-C stops the waiting only."""

    def interrupt(_seconds):
        raise KeyboardInterrupt

    connection = Connection(connect=lambda: Client(http=http, sleep=interrupt))

    result = CliRunner().invoke(app, [*REQUEST, str(rows)], obj=connection)

    assert result.exit_code == 130
    assert "the job goes on" in result.stderr
    assert "fimlora cancel job_" in result.stderr


def test_a_service_that_is_away_is_named(terminal):
    """With the command that starts it."""
    context = Context(RetryPolicy(max_retries=0))
    connection = Connection(connect=lambda: Client("http://127.0.0.1:9", context=context))

    result = CliRunner().invoke(app, ["jobs"], obj=connection)

    assert result.exit_code == 1
    assert result.stderr.startswith("error no answer from http://127.0.0.1:9")
    assert "fimlora up" in result.stderr


def test_a_refusal_that_may_pass_is_told_at_once(terminal):
    """A full queue is waited for; the reason is said before the waiting, and once."""
    problem = {
        "type": "/problems/queue_full", "title": "t", "status": 503, "code": "queue_full",
        "detail": "10000 jobs are open", "next_step": "Wait.", "errors": [],
    }  # fmt: skip

    def refuse(_request):
        return httpx2.Response(503, json=problem, headers={"Retry-After": "30"})

    http = httpx2.Client(transport=httpx2.MockTransport(refuse), base_url="http://x")

    def sleep(_seconds):
        sys.stderr.write("asleep\n")

    connection = Connection(connect=lambda: Client(http=http, sleep=sleep))

    result = CliRunner().invoke(app, ["jobs"], obj=connection)

    assert result.exit_code == 1
    first, *sleeps = result.stderr.splitlines()[:5]
    assert first.startswith("waiting queue_full: 10000 jobs are open; trying again in 3")
    assert sleeps == ["asleep"] * 4
    assert result.stderr.splitlines()[5].startswith("error")


def test_models_are_registered_and_listed(run, data_dir, tiny_model):
    """A registered name can be used at once; the wrong folder and name are refused."""
    added = run("models", "add", "mine", tiny_model)

    assert added.exit_code == 0
    assert (data_dir / "models" / "mine").resolve() == tiny_model
    assert {line.split()[0] for line in run("models").stdout.splitlines()} == {
        "model", "mine", "tiny",
    }  # fmt: skip
    assert "holds no config.json" in run("models", "add", "x", data_dir).stderr
    assert "cannot be a name" in run("models", "add", "../x", tiny_model).stderr
    assert run("models", "add", "mine", tiny_model).exit_code == 0  # again is fine


def test_a_model_is_linked_where_the_running_service_looks(
    run, data_dir, tiny_model, tmp_path, monkeypatch
):
    """Whatever folder the command is run from, and whatever its own default would be."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("FIMLORA_DATA_DIR")

    added = run("models", "add", "mine", tiny_model)

    assert added.exit_code == 0, added.output
    assert (data_dir / "models" / "mine").resolve() == tiny_model
    assert not (elsewhere / ".fimlora").exists()
    assert "no service" not in added.stderr


def test_a_link_that_the_service_does_not_see_is_said(run, tiny_model, tmp_path):
    """A folder that was chosen may be another service's: the link stays, and it is said."""
    added = run("models", "add", "mine", tiny_model, "--data-dir", tmp_path / "other")

    assert added.exit_code == 0
    assert (tmp_path / "other" / "models" / "mine").is_symlink()
    assert "looks in another folder" in added.stderr


def test_without_a_service_it_is_said_which_one_will_see_the_link(
    tiny_model, tmp_path, terminal, monkeypatch
):
    """The command to start it is the next thing to type."""
    monkeypatch.setenv("FIMLORA_DATA_DIR", str(tmp_path / "here"))
    away = Connection(connect=lambda: Client("http://127.0.0.1:9"))

    added = CliRunner().invoke(app, ["models", "add", "mine", str(tiny_model)], obj=away)

    assert added.exit_code == 0, added.output
    assert f"fimlora up --data-dir {tmp_path / 'here'}" in added.stderr
    assert (tmp_path / "here" / "models" / "mine").resolve() == tiny_model


def test_a_model_is_no_longer_registered_after_rm(run, data_dir, tiny_model):
    """The name goes, the folder stays; what was never there is named with what was meant."""
    run("models", "add", "mine", tiny_model)

    gone, again, odd = (run("models", "rm", name) for name in ("mine", "tinny", "../x"))

    assert gone.exit_code == 0
    assert sorted(path.name for path in (data_dir / "models").iterdir()) == ["tiny"]
    assert (tiny_model / "config.json").is_file()
    assert again.exit_code == odd.exit_code == 1
    assert "did you mean 'tiny'?" in again.stderr
    assert "cannot be a name" in odd.stderr


def test_a_folder_that_is_no_link_is_not_removed(run, data_dir):
    """What the operator put there by hand stays."""
    (data_dir / "models" / "kept").mkdir()

    result = run("models", "rm", "kept")

    assert result.exit_code == 1
    assert "is not a link" in result.stderr
    assert (data_dir / "models" / "kept").is_dir()


@pytest.mark.parametrize("noun", ["datasets", "adapters"])
def test_what_is_registered_can_be_taken_away(run, data_dir, noun, tmp_path):
    """As for models, so for its siblings."""
    room = data_dir / noun
    room.mkdir(exist_ok=True)
    (room / "mine").symlink_to(tmp_path)

    assert run(noun, "rm", "mine").exit_code == 0
    assert not (room / "mine").is_symlink()
    assert "nothing is registered as 'mine'" in run(noun, "rm", "mine").stderr


@pytest.mark.parametrize(
    ("options", "called"),
    [
        ([], None),
        (["--base-model", "org/tiny"], "org/tiny"),
        (["--base-model", "/m/t"], "/m/t"),
    ],
)
def test_adapters_call_a_model_by_what_was_given_with_it(
    run, tiny_model, rows, tmp_path, options, called
):
    """A hub id, or a path: by default the one that was registered; never the registered name."""
    run("models", "add", "mine", tiny_model, *options)

    run("calibrate", "mine", rows, "--budget", 4, "--batches", 1, "-o", tmp_path / "made")

    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == (called or str(tiny_model))


def test_another_name_for_a_model_is_written_without_measuring_again(
    run, tiny_model, rows, tmp_path
):
    """What adapters call it is part of a result, and of no statistics."""
    asked = ["calibrate", "mine", rows, "--budget", 4, "--batches", 1]
    run("models", "add", "mine", tiny_model, "--base-model", "org/a")
    run(*asked)
    run("models", "add", "mine", tiny_model, "--base-model", "org/b")

    estimate = run(*asked, "--estimate")
    run(*asked, "-o", tmp_path / "made")

    assert "planned anew from known statistics" in estimate.stdout
    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/b"


def test_a_model_without_a_name_for_adapters_leaves_it_open(run, rows, tmp_path):
    """A link by hand has none: null loads in PEFT, where a nickname would be looked up on the hub."""
    run("calibrate", "tiny", rows, "--budget", 4, "--batches", 1, "-o", tmp_path / "made")

    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    text = run(
        "fetch", "--model", "tiny", "--dataset", upload_id(run), "--format", "axolotl"
    ).stdout
    assert config["base_model_name_or_path"] is None
    assert "base_model: BASE_MODEL" in text
    assert "put the base model's hub id or path in place of BASE_MODEL" in text


def upload_id(run):
    """The id of the one upload there is."""
    [dataset] = json.loads(run("datasets", "--json").stdout)
    return dataset["id"]


def test_a_name_that_is_a_folder_is_not_replaced(run, data_dir, tiny_model):
    """What the operator put there by hand stays."""
    (data_dir / "models" / "kept").mkdir()

    result = run("models", "add", "kept", tiny_model)

    assert result.exit_code == 1
    assert "is not a link" in result.stderr


def test_datasets_are_uploaded_registered_and_listed(run, rows, tmp_path):
    """Uploads print their id for scripts."""
    id_ = run("datasets", "upload", rows).stdout.strip()
    added = run("datasets", "add", "mine", write_jsonl(tmp_path / "b.jsonl", LABELLED))

    listed = run("datasets").stdout

    assert added.exit_code == 0
    assert id_.startswith("ds_")
    assert id_ in listed
    assert "mine" in listed
    assert {d["id"] for d in json.loads(run("datasets", "--json").stdout)} == {id_, "mine"}
    assert run(*REQUEST, "mine").exit_code == 0
    assert json.loads(run("datasets", "show", id_).stdout)["rows"] == len(LABELLED)
    assert run("datasets", "delete", id_).exit_code == 0
    assert run("datasets", "show", id_).exit_code == 3


def test_help_shows_every_command_and_an_example(run):
    """A beginner finds the first three steps on the first page."""
    text = run("--help").stdout

    for command in get_command(app).commands:
        assert f"│ {command} " in text
        assert "Usage" in run(command, "--help").stdout
    assert "fimlora calibrate minilm train.jsonl --budget 8" in text


def test_the_version_is_that_of_the_package(run):
    """And nothing else is printed."""
    assert run("--version").stdout == f"fimlora {__version__}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "--budget rank: must be at least 1"),
        (["--budget", "x"], "--budget 'x' is no budget; write 8 (mean rank), 250k, 8M"),
        (["--budget", "8000000"], "parameters are written 250k, 8M or 8_000_000"),
        (["--budget-parameters", "64MB"], "names two units"),
        (["--budget", "8", "--method", "best"], "--method: must be 'fim', "),
        (["--budget", "8", "--column", "txt=a"], "there is no such field; there are ['text', "),
    ],
)
def test_a_wrong_option_says_what_is_allowed(run, tmp_path, options, message):
    """In the service's words, which know nothing of the validator."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 0}\n')

    result = run("calibrate", "tiny", tmp_path / "rows.jsonl", *options)

    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["tini", "ROWS", "-b", "4"], "did you mean 'tiny'?"),
        (["tiny", "ownrows", "-b", "4"], "did you mean 'own-rows'?"),
        (["tiny", "ROWS", "-b", "4", "--method", "spectrl"], "did you mean 'spectral'?"),
        (["tiny", "ROWS", "-b", "4", "--estimator", "exakt"], "did you mean 'exact'?"),
        (["tiny", "ROWS", "-b", "4", "--column", "txt=text"], "did you mean 'text'?"),
        (["tiny", "ROWS", "-b", "4", "--column", "text=texts"], "did you mean 'text'?"),
        (["tiny", "ROWS", "-b", "4", "-t", "querry"], "near names: ['query'"),
        (["tiny", "ROWS", "-b", "4", "--adapter", "traind"], "did you mean 'trained'?"),
        (["nothing-like-it", "ROWS", "-b", "4"], ""),
    ],
)
def test_a_name_that_is_nearly_one_is_asked_for(run, rows, data_dir, arguments, meant):
    """Models, datasets, methods, choices, fields, columns, modules, adapters."""
    for room, name in (("datasets", "own-rows"), ("adapters", "trained")):
        (data_dir / room).mkdir(exist_ok=True)
        (data_dir / room / name).symlink_to(rows)

    result = run("calibrate", *[rows if a == "ROWS" else a for a in arguments])

    assert result.exit_code in {1, 2, 3}, result.output
    assert meant in result.stderr
    assert meant or "did you mean" not in result.stderr


def test_columns_that_are_not_found_say_how_to_name_them(run, tmp_path):
    """By the option, with a column that is there."""
    odd = write_jsonl(
        tmp_path / "odd.jsonl", [{"review": "so", "stars": n % 2} for n in range(8)]
    )

    refused = run(*REQUEST, odd)
    named = run(
        *REQUEST, odd, "--column", "text=review", "--column", "label=stars", "--no-wait"
    )

    assert "--column text=review" in refused.stderr
    assert "say which column is what by --column ROLE=NAME" in refused.stderr
    assert "the roles are text, text_pair, label" in refused.stderr
    assert named.exit_code == 0, named.output


def test_a_json_list_is_uploaded_and_its_job_says_what_was_recognised(run, tmp_path):
    """As Alpaca and ShareGPT are published: one list in a file."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(LABELLED, indent=1))

    job = json.loads(run(*REQUEST, file, "--no-wait", "--json").stdout)

    assert job["resolved"]["dataset"]["read_as"] == "texts with a label: text, label"
    assert "rows read as texts with a label: text, label" in run("show", job["id"]).stdout


@pytest.mark.parametrize(
    "content", ["{}", '{"text": "a"}\n{"text": "b"}', "[1]", "[", "[" * 9999]
)
def test_a_json_file_that_is_no_list_of_rows_is_refused(run, tmp_path, content):
    """With the name that rows by line have."""
    file = tmp_path / "rows.json"
    file.write_text(content)

    result = run(*REQUEST, file)

    assert result.exit_code == 1
    assert "is no JSON list of rows" in result.stderr
    assert ".jsonl" in result.stderr


def test_a_cancel_of_a_shared_job_says_that_it_goes_on(run, rows, job_id):
    """Else a beginner would think that nothing had happened."""
    for _ in range(2):
        assert run(*REQUEST, rows, "--no-wait").stdout.strip() == job_id

    assert "it goes on for 2 equal requests" in run("cancel", job_id).stderr
    assert "it goes on for another equal request" in run("cancel", job_id).stderr
    assert "goes on" not in run("cancel", job_id).stderr


@pytest.mark.parametrize(
    ("named", "said", "step"),
    [
        ("rows.tsv", "is not one of", "Convert it to one of these"),
        ("./rows", "is a folder", "fimlora datasets add NAME ./rows"),
        ("rows/", "is a folder", "fimlora datasets add NAME rows/"),
    ],
)
def test_what_lies_here_and_is_no_file_of_rows_is_not_sought_on_the_hub(
    run, tmp_path, monkeypatch, named, said, step
):
    """It is refused by what it is, before anybody is asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows.tsv").write_text("text\tlabel\na\tb\n")

    refused = run("calibrate", "tiny", named, "--budget", "4")

    assert refused.exit_code == 1
    assert said in refused.stderr
    assert step in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ("text;label\na;b\n", "read_csv(FILE, sep=';').to_csv(FILE, index=False)"),
        ("text,label\na\n", "CSV with commas between fields"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_put_right_by_names_of_columns(
    run, tmp_path, content, step
):
    """Upload and calibration alike say what the file must be."""
    (tmp_path / "rows.csv").write_text(content)

    for words in (("datasets", "upload"), ("calibrate", "--budget", "4", "tiny")):
        refused = run(*words, tmp_path / "rows.csv")

        assert refused.exit_code == 1
        assert step in " ".join(refused.stderr.split())
        assert "--column" not in refused.stderr
