"""Plans and adapters in the words of trainers and servers, and what is refused, with the reason."""

import json

import pytest

from fimlora_client.cli.results.export import CannotExport, check_readable

NAMES = [
    f"model.layers.{n}.self_attn.{leaf}" for n in range(2) for leaf in ("q_proj", "v_proj")
]


@pytest.fixture
def planned(run, rows, tmp_path):
    """A job, and its adapter in a folder, with initial weights."""
    made = run(
        "calibrate", "tiny", rows, "--budget", "4", "--batches", "2", "--weights", "--json",
        "--output", tmp_path / "adapter", "--pin", "mine:prod",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    return json.loads(made.stdout)["id"], tmp_path / "adapter"


def test_a_plan_is_the_same_text_from_wherever_it_comes(run, planned, tmp_path):
    """The job, the pin and the folder; the folder is read here, without a service."""
    job_id, folder = planned

    texts = [
        run("export", s, "--format", "axolotl").stdout for s in (job_id, "mine:prod", folder)
    ]
    written = run("export", job_id, "--format", "peft", "--output", tmp_path / "a.json")

    assert "lora_rank_pattern" in texts[0]
    assert len(set(texts)) == 1
    assert written.exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("format", ["peft", "vllm", "axolotl"])
def test_a_folder_without_a_plan_is_told_what_has_one(run, tmp_path, format):
    """As of what a trainer has saved: its config has ranks, and nobody says that they were planned."""
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/adapter_config.json").write_text("{}")

    refused = run("export", tmp_path / "trained", "--format", format)

    said = " ".join(refused.stderr.split())
    assert refused.exit_code != 0
    assert "has no rank_map.json" in said
    assert "Give the folder that `fimlora fetch JOB` wrote" in said
    assert refused.stdout == ""


def test_a_server_that_knows_no_heads_is_told_nothing(run, planned):
    """A classifier's new head is trained whole, which vLLM does not serve."""
    job_id, folder = planned

    refused = [run("export", source, "--format", "vllm") for source in (job_id, folder)]

    assert [one.exit_code != 0 for one in refused] == [True, True]
    assert not any(one.stdout for one in refused)
    for one in refused:
        assert "modules_to_save" in one.stderr
        assert "merge it into the base model" in " ".join(one.stderr.split())


def test_adalora_takes_the_steps_that_its_ranks_fall_by(run, planned):
    """From the service and from a folder; without them it says which option is missing."""
    job_id, folder = planned
    wanted = ["--format", "adalora", "--steps", "2000", "--accumulation", "2"]

    served, read = run("export", job_id, *wanted), run("export", folder, *wanted)
    without, besides = (
        run("export", job_id, *wanted[:2]),
        run("export", job_id, "--format", "trl", *wanted[2:]),
    )

    assert json.loads(served.stdout)["total_step"] == 2000
    assert served.stdout == read.stdout
    assert without.exit_code == besides.exit_code == 2
    assert "needs --steps" in without.stderr
    assert "for --format adalora only" in besides.stderr


def test_a_server_of_one_rank_gets_the_adapter_padded(run, planned, tmp_path):
    """In a new folder, with the command to go on with; one that is there is left alone."""
    _, folder = planned
    wanted = ["export", folder, "--format", "gguf", "--output", tmp_path / "padded"]

    made, again = run(*wanted), run(*wanted)

    assert made.exit_code == 0, made.output
    config = json.loads((tmp_path / "padded" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert "convert_lora_to_gguf.py" in made.stderr
    assert again.exit_code == 1
    assert "name a folder that is not there yet" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["job_x", "--format", "torchtune"], 1, "one rank for all modules"),
        (["job_x", "--format", "nothing"], 2, "allowed: peft, "),
        (["job_x", "--format", "gguf", "-o", "x"], 1, "made from a trained adapter"),
        (["nowhere", "--format", "trl"], 2, "no id of a job"),
        (["job_none", "--format", "trl"], 3, "no job 'job_none'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(run, arguments, code, said):
    result = run("export", *arguments)

    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("server", "modules", "width", "said"),
    [
        ("tgi", NAMES, 8, "multiples of 16"),
        (
            "lorax",
            NAMES[:-1],
            16,
            "drops v_proj everywhere where one layer lacks it, as 1 does",
        ),
        ("sglang", [n for n in NAMES if "v_proj" not in n], 16, "without v_proj"),
    ],
)
def test_what_a_server_would_get_wrong_is_refused(server, modules, width, said):
    with pytest.raises(CannotExport, match=said):
        check_readable(server, modules, width)

    check_readable(server, NAMES, 16)
