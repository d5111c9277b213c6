"""Commands on trained adapters in folders: no service, no torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fimlora_client.cli import app
from fimlora_client.cli.common.context import Connection

NAMES = [f"layers.{i}.{kind}" for i in range(3) for kind in ("q_proj", "up_proj")]


def refuse():
    raise AssertionError("no service is asked")


@pytest.fixture
def run():
    """Run the command line as a user does, where there is no service."""

    def invoke(*words):
        environment = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
        connection = Connection(connect=refuse)
        return CliRunner().invoke(app, [*map(str, words)], env=environment, obj=connection)

    return invoke


@pytest.fixture
def trained(tmp_path):
    """An adapter of rank 4 on six modules, each used less than the one before it."""
    folder = tmp_path / "trained"
    folder.mkdir()
    rng, tensors = np.random.default_rng(0), {}
    for number, name in enumerate(NAMES):
        d_out = 24 if name.endswith("q_proj") else 40
        fading = (0.5**number) ** np.arange(4)
        key = f"base_model.model.{name}.lora_"
        tensors[f"{key}A.weight"] = rng.normal(size=(4, 24)).astype(np.float32)
        tensors[f"{key}B.weight"] = (rng.normal(size=(d_out, 4)) * fading).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
        "base_model_name_or_path": "org/model", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_truncate_writes_an_adapter_and_says_what_it_cost(run, trained, tmp_path):
    """A table of ranks, the change of the function, and that of one rank for all."""
    result = run("truncate", trained, "--budget", 2, "--output", tmp_path / "out")

    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()[1:7]]
    assert [row[0] for row in rows] == NAMES
    assert sum(int(row[1]) for row in rows) == 12
    assert {row[2] for row in rows} == {"4"}
    assert "one rank for all at the same budget would change it by" in result.stdout
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, rank, *_ in rows:
        assert len(stored[f"base_model.model.{name}.lora_A.weight"]) == int(rank)


def test_json_has_the_same_figures(run, trained, tmp_path):
    result = run("truncate", trained, "--energy", 0.9, "-o", tmp_path / "out", "--json")

    found = json.loads(result.stdout)
    assert found["ranks"] == sum(module["rank"] for module in found["modules"])
    assert 0 < found["error"] <= 0.1**0.5
    assert found["parameters"] < found["parameters_before"]


def test_bytes_are_counted_as_stored(run, trained, tmp_path):
    """A parameter of float32 takes four."""
    result = run("truncate", trained, "--budget-bytes", 4 * 800, "-o", tmp_path / "o", "--json")

    assert 736 < json.loads(result.stdout)["parameters"] <= 800


def test_audit_shows_what_is_used_and_what_was_planned(run, trained, tmp_path):
    """Of the plan by which it was cut, and of another one."""
    run("truncate", trained, "--budget", 2, "--output", tmp_path / "out")

    plain = run("audit", trained)
    held = run("audit", tmp_path / "out", "--rank-map", tmp_path / "out")
    other = run("audit", trained, "--rank-map", tmp_path / "out")

    assert plain.stdout.split()[:8] == ["module", "rank", "90", "%", "95", "%", "99", "%"]
    assert "of 1344 parameters lie in ranks" in plain.stdout
    assert "are those of the plan" in held.stderr
    assert f"{NAMES[-1]} has rank 4, planned is 1" in other.stdout
    assert json.loads(run("audit", trained, "--json").stdout)["parameters"] == 1344


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "nan"], "is no budget; write 8"),
        (["--budget", "1%"], "which is not at hand"),
        (["--budget", "2", "--budget-bytes", "9"], "give exactly one of"),
    ],
)
def test_a_budget_is_written_as_in_every_command(run, trained, tmp_path, words, said):
    """What is none is wrong usage, and nothing is written."""
    result = run("truncate", trained, *words, "--output", tmp_path / "out")

    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_budget_may_be_bytes_in_one_word(run, trained, tmp_path):
    """The same as by the option that has bytes in its name."""
    words, plain = ["--budget", "3.2kB"], ["--budget-bytes", 3200]
    made = [
        json.loads(run("truncate", trained, *given, "-o", tmp_path / given[0], "--json").stdout)
        for given in (words, plain)
    ]

    assert made[0] == made[1]


def test_convert_pads_and_says_that_nothing_changed(run, trained, tmp_path):
    result = run("convert", trained, "--layout", "C", "--output", tmp_path / "out")

    assert "6 modules in layout C, padded to rank 8" in result.stdout
    assert "the same to the bit" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "2", "--energy", "0.5"], "one of both"),
        ([], "give a budget or the energy"),
        (["--budget", "9"], "only takes ranks away"),
        (["--budget", "2", "--layout", "D"], "allowed are B, C"),
        (["--budget", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(run, trained, tmp_path, words, said):
    """With the next step, and without a traceback."""
    result = run("truncate", trained, *words, "--output", tmp_path / "out")

    assert result.exit_code == 1
    assert said in result.stderr
    assert "Nothing was written; --help of this command" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_there_stays_unless_told_otherwise(run, trained, tmp_path):
    words = ("convert", trained, "--output", tmp_path / "out")
    run(*words)

    assert "give --overwrite" in run(*words).stderr
    assert run(*words, "--overwrite").exit_code == 0


def test_no_heavy_package_is_loaded(trained, tmp_path):
    """In a process of its own: neither torch nor what the light install lacks."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "safetensors", "peft", "transformers", "regex", "yaml"]))
from fimlora_client.cli import app
for words in (["truncate", "--budget", "2", "--output", {str(tmp_path / "t")!r}],
              ["convert", "--layout", "C", "--output", {str(tmp_path / "c")!r}], ["audit"]):
    app([words[0], {str(trained)!r}, *words[1:]], standalone_mode=False)
"""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "c" / "rank_map.json").exists()
