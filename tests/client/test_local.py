"""A calibration without service and store: the same files as a job's, and what goes wrong."""

import json

import pytest

from support.jobs import LABELLED, write_jsonl
from support.terminal import CommandLine

OPTIONS = ["--budget", "4", "--batches", "2"]


@pytest.fixture
def local(tmp_path):
    """Run the command in a process of its own, where no service and no Redis are."""

    def local(*arguments):
        environment = {"REDIS_URL": "", "FIMLORA_URL": "http://127.0.0.1:9", "CI": "true"}
        line = CommandLine(
            "local", "calibrate", *map(str, arguments), environment=environment, folder=tmp_path
        )
        return line.end(), line.output

    return local


def test_the_files_are_those_of_a_job(local, run, data_dir, tiny_model, tmp_path):
    """Bit for bit, where model and rows go by the same names."""
    rows = write_jsonl(tmp_path / "mine.jsonl", LABELLED)
    (data_dir / "models" / "tiny").unlink()
    assert run("models", "add", "tiny", tiny_model, "--data-dir", data_dir).exit_code == 0
    (data_dir / "datasets").mkdir(exist_ok=True)
    (data_dir / "datasets" / "mine").symlink_to(rows)
    made = run("calibrate", "tiny", "mine", *OPTIONS, "--output", tmp_path / "job")
    assert made.exit_code == 0, made.output

    code, said = local(tiny_model, rows, *OPTIONS, "--output", "here")

    assert code == 0, said
    job, here = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("job", "here")
    )
    assert json.loads(here["rank_map.json"]) == json.loads(job["rank_map.json"])
    assert here == job
    assert "local  calibrating" in said
    assert "mean rank 4, each 2 to 8" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("rows", "options", "code", "message"),
    [
        (
            '{"text": "a", "label": 0}\n',
            ["--budget", "0"],
            2,
            "--budget rank: must be at least 1",
        ),
        ('{"words": "a"}\n', OPTIONS, 1, "text"),
        ("", OPTIONS, 1, "rows"),
        (None, OPTIONS, 1, "there is no"),
    ],
    ids=["a budget", "columns", "no rows", "no file"],
)
def test_a_mistake_is_a_sentence_and_leaves_nothing(
    local, tiny_model, tmp_path, rows, options, code, message
):
    file = tmp_path / "rows.jsonl"
    if rows is not None:
        file.write_text(rows)

    found, said = local(tiny_model, file, *options, "--output", "here")

    assert found == code, said
    assert message in said
    assert "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"rows.jsonl"}


def test_what_a_service_takes_is_taken_here(local, tiny_model, tmp_path):
    """Rows to retain, also under the name of the others, ranks that keep to a menu, one alpha."""
    (tmp_path / "kept").mkdir()
    rows = write_jsonl(tmp_path / "rows.jsonl", LABELLED)
    retained = write_jsonl(tmp_path / "kept" / "rows.jsonl", LABELLED[::-1])
    rules = ["--rank-menu", "1,3,7", "--alpha", "16"]
    options = ["--method", "vila", "--retain", retained, *rules]

    code, said = local(tiny_model, rows, *OPTIONS, *options, "--output", "here")

    assert code == 0, said
    plan = json.loads((tmp_path / "here" / "rank_map.json").read_text())
    assert {module["rank"] for module in plan["modules"]} <= {1, 3, 7}
    assert plan["provenance"]["contrast"]["retain"]
    config = json.loads((tmp_path / "here" / "adapter_config.json").read_text())
    assert {config["lora_alpha"], *config["alpha_pattern"].values()} == {16}


@pytest.mark.parametrize(
    ("names", "step"),
    [
        (["org/model", "rows.jsonl"], "hf download org/model --local-dir DIR"),
        (["tiny", "rows.jsonl"], "A service knows names, uploads and the hub"),
    ],
)
def test_what_only_a_service_knows_is_refused_with_the_next_step(local, tmp_path, names, step):
    """A name, or an id on the hub."""
    write_jsonl(tmp_path / "rows.jsonl", LABELLED)

    code, said = local(*names, *OPTIONS, "--output", "here")

    assert code == 1
    assert "this command reads files and folders of this machine" in " ".join(said.split())
    assert step in " ".join(said.split())


@pytest.mark.parametrize(
    ("option", "step"),
    [
        (["--adapter", "mine"], "fimlora adapters add"),
        (["--split=train"], "so give that of the split"),
        (["--priority", "high"], "ask a service with it: fimlora calibrate"),
    ],
)
def test_an_option_of_jobs_is_refused_with_the_next_step(local, option, step):
    """By its name; one that nobody has is still none."""
    code, said = local("here", "rows.jsonl", *OPTIONS, *option, "--output", "out")

    assert code == 2
    words = " ".join(said.replace("│", " ").split())
    assert f"{option[0].partition('=')[0]} is for jobs of a service" in words
    assert step in words
    assert "No such option" in local("here", "rows.jsonl", "--nobody", "--output", "out")[1]
