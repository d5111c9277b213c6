"""``fimlora verify``: in folders without a service and without torch, and against jobs and pins."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def planned(run, rows, tmp_path):
    """A job's id and the folder of its files, initial weights among them."""
    words = ["calibrate", "tiny", rows, "--batches", 2, "--budget", 4, "--weights"]
    result = run(*words, "--output", tmp_path / "planned", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["id"], tmp_path / "planned"


def edit_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_adapter_against_its_folder_its_job_and_its_pin(run, planned):
    """Wherever the plan is kept it is the same, and so is what is found."""
    job, folder = planned
    run("pin", "task", "prod", job)
    digest = json.loads(run("show", job, "--json").stdout)["result"]["digest"]
    sources = [
        ("--digest", digest),
        ("--plan", folder),
        ("--job", job),
        ("--pin", "task:prod"),
        ("--pin", "task/prod"),
    ]

    results = [run("verify", folder, *source, "--json") for source in sources]

    assert [result.exit_code for result in results] == [0] * 5, results[-1].output
    found = [json.loads(result.stdout) for result in results]
    assert all(each == found[0] for each in found)
    assert found[0]["as_planned"]
    assert found[0]["found"] == found[0]["planned"]
    assert "is as planned" in run("verify", folder, "--plan", folder).stderr


def test_what_is_not_as_planned_is_a_table_and_an_exit_code(run, planned, tmp_path):
    """The first faults by module, and the next step; JSON has all of them."""
    job, folder = planned
    edit_config(folder, alpha_pattern={})

    for source in (("--plan", folder), ("--job", job)):
        result = run("verify", folder, *source)
        assert result.exit_code == 6
        assert "alpha_lost" in result.stdout
        assert "scale 2" in result.stdout
        assert "Give the trainer alpha_pattern" in result.stderr
    result = run("verify", folder, "--plan", folder, "--json")
    assert result.exit_code == 6
    found = json.loads(result.stdout)
    assert not found["as_planned"]
    assert {fault["code"] for fault in found["faults"]} == {"alpha_lost"}
    assert {*found["faults"][0]} == {"code", "module", "planned", "found", "message"}


def test_markdown_is_a_comment_in_which_no_name_is_markup(run, planned):
    """The verdict first, then faults as text that calls nobody."""
    _, folder = planned
    right = run("verify", folder, "--plan", folder, "--markdown")
    edit_config(folder, alpha_pattern={}, base_model_name_or_path="org/<b>|`@all`")

    wrong = run("verify", folder, "--plan", folder, "--markdown")

    assert (right.exit_code, wrong.exit_code) == (0, 6)
    assert "✅ **as planned**" in right.stdout
    assert "❌ **not as planned**" in wrong.stdout
    assert "| `alpha_lost` | " in wrong.stdout
    outside = re.sub(r"`[^`\n]*`", "", wrong.stdout)
    assert "@all" not in outside
    assert "<b>" not in outside


def test_long_lists_are_cut_in_the_table_only(run, planned):
    _, folder = planned
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({f"_orig_mod.{key}": value for key, value in tensors.items()}, file)
    edit_config(folder, use_rslora=True, alpha_pattern={}, base_model_name_or_path="org/other")

    shown = run("verify", folder, "--plan", folder)
    found = json.loads(run("verify", folder, "--plan", folder, "--json").stdout)

    assert len(found["faults"]) > 12
    assert f"and {len(found['faults']) - 12} more" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "exactly one of --plan, --pin, --job,"),
        (["--plan", "x", "--job", "y"], 2, "exactly one of --plan, --pin, --job,"),
        (["--pin", "task"], 2, "NAME:TAG"),
        (["--plan", "nowhere"], 1, "cannot read a plan"),
        (["--job", "job_unknown"], 3, "no job"),
        (["--digest", "sha256:1"], 2, "must be sha256: and 64"),
        (["--pin", "task:prod"], 3, "prod"),
    ],
)
def test_plans_that_are_none(run, planned, words, code, said):
    """A line and an exit code, no traceback."""
    result = run("verify", planned[1], *words)

    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_the_files_of_a_local_base_model_are_those_that_were_calibrated(
    run, planned, tiny_model, tmp_path
):
    """A copy anywhere is the same model; a file that changed is not, unless it is vouched for."""
    plan = planned[1]
    folder = shutil.copytree(plan, tmp_path / "trained")
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    edit_config(folder, base_model_name_or_path=str(copy))

    same = run("verify", folder, "--plan", plan)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    other = run("verify", folder, "--plan", plan)
    vouched = run("verify", folder, "--plan", plan, "--base-model", copy)
    shutil.rmtree(copy)
    away = run("verify", folder, "--plan", plan)

    assert [same.exit_code, other.exit_code, vouched.exit_code, away.exit_code] == [0, 6, 0, 0]
    assert "the files of the base model were compared" in same.stderr
    assert f"base model in {copy} are not those that were calibrated" in " ".join(
        other.stderr.split()
    )
    assert "--base-model" in other.stderr
    assert "tells nothing" in " ".join(away.stderr.split())


def test_a_job_without_a_plan(run, rows, planned):
    """Not finished is told from failed."""
    queued = run("calibrate", "tiny", rows, "--budget", 5, "--no-wait").stdout.strip()
    assert run("verify", planned[1], "--job", queued).exit_code == 5
    run("cancel", queued)
    assert run("verify", planned[1], "--job", queued).exit_code == 4


def test_folders_that_hold_no_adapter(run, planned, tmp_path):
    (tmp_path / "empty").mkdir()

    result = run("verify", tmp_path / "empty", "--plan", planned[1])
    assert result.exit_code == 1
    assert "no adapter to verify" in result.stderr
    assert "--help" in result.stderr


def test_no_heavy_package_is_loaded(planned, tmp_path):
    """In a process of its own, as a light install has it: neither torch nor safetensors."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "safetensors", "peft", "transformers", "regex", "yaml"]))
from fimlora_client.cli import app
app(["verify", {str(planned[1])!r}, "--plan", {str(planned[1])!r}], standalone_mode=False)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "is as planned" in ran.stderr
