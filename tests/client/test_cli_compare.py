"""``fimlora compare`` on the real app, with a worker behind it."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from fimlora import Budget, TargetModule
from fimlora import compare as compare_methods
from fimlora.methods.registry import METHODS
from fimlora.methods.score import obstacle
from fimlora_client.cli.work.compare import experts_table, left_out_lines
from fimlora_contract.comparisons import Comparison
from support.results import make_statistics

REQUEST = ["--budget", "4"]


def table(text):
    """The rows of the methods and of the pairs that are printed."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [line for line in lines if line[0] in METHODS]


def test_a_file_is_measured_once_and_compared(run, rows, tmp_path):
    """A line per method, a line per pair, and files that say the same."""
    folder = tmp_path / "compared"

    result = run("compare", "tiny", rows, *REQUEST, "--batches", "2", "--output", folder)

    assert result.exit_code == 0, result.output
    data = json.loads((folder / "compare.json").read_text())
    ElementTree.parse(folder / "compare.svg")
    lines = table(result.stdout)
    methods, pairs = lines[: len(data["methods"])], lines[len(data["methods"]) :]
    assert [line[:3] for line in methods] == [
        [row["method"], f"{row['ranks']:,}", f"{row['parameters']:,}"]
        for row in data["methods"]
    ]
    assert [line[:3] for line in pairs] == [
        [pair["a"], pair["b"], f"{pair['overlap']:.1%}"] for pair in data["pairs"]
    ]
    assert "compare.svg" in result.stderr


def test_a_job_that_has_measured_is_compared_at_once(run, rows, tmp_path):
    """With what its statistics give; the files are written here."""
    run("compare", "tiny", rows, *REQUEST, "--batches", "2")
    listed = json.loads(run("jobs", "--json").stdout)
    job_id = next(job["id"] for job in listed if job["kind"] == "comparison")
    folder = tmp_path / "again"

    shown = run("show", job_id)
    again = run("compare", job_id, *REQUEST, "--methods", "fim,coherent", "--output", folder)
    as_json = run("compare", job_id, *REQUEST, "--json")

    assert again.exit_code == 0, again.output
    assert [line[0] for line in table(again.stdout)] == ["fim", "coherent", "fim"]
    data = json.loads((folder / "compare.json").read_text())
    assert [row["method"] for row in data["methods"]] == ["fim", "coherent"]
    ElementTree.parse(folder / "compare.svg")
    assert json.loads(as_json.stdout)["job_id"] == job_id
    assert len(table(shown.stdout)) > len(METHODS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny"], "tiny is no id of a job: give a model and a dataset, or job_"),
        (["tiny", "ROWS", "--methods", "fim,best"], "--methods entry 2: must be 'fim', "),
        (["tiny", "ROWS", "--methods", "fim"], "at least two"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_sent(run, rows, arguments, said):
    """With the exit code of wrong usage."""
    result = run("compare", *[rows if a == "ROWS" else a for a in arguments], *REQUEST)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_selected_experts_have_a_line_and_random_ones_another():
    """Of Fisher information 1, 2, 3 and 4 the half with the most has 7 of 10."""
    names = [f"layers.0.experts.{n}.up" for n in range(4)]
    measured = replace(
        make_statistics(),
        modules=tuple(TargetModule(name, 16, 16) for name in names),
        row_energies={name: np.full(16, n + 1.0) for n, name in enumerate(names)},
        example_energies={},
    )
    found = compare_methods(
        measured,
        Budget("parameters", 320),
        methods=["fim", "uniform"],
        experts={"select": "fisher", "share": 0.5},
    )
    console = Console(width=120, record=True)

    console.print(experts_table(Comparison.model_validate(found.to_json())))

    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    asked, control = lines[-2:]
    assert asked == ["fisher", "2", "of", "4", "\N{EN DASH}", "70.0%", "2", "320"]
    assert control[:4] == ["random", "2", "of", "4"]
    assert control[-1] == "320"


def test_selected_experts_leave_most_methods_out_in_one_line():
    """The engine says it of each by its name."""
    names = [f"layers.{n}.mlp.experts.up_proj" for n in range(2)]
    measured = replace(
        make_statistics(),
        modules=tuple(TargetModule(n, 16, 16, n_experts=2, experts=(1,)) for n in names),
    )
    reasons = {
        name: reason
        for name in METHODS
        if (reason := obstacle(measured, name)) and "some of them are selected" in reason
    }
    assert len(reasons) > 5

    [line] = left_out_lines(Comparison.model_construct(left_out=reasons))

    assert line.startswith(
        f"{', '.join(reasons)} ({len(reasons)} methods): each goes by what is"
    )
    assert line.count("take one of") == 1


def test_a_reason_of_several_methods_is_said_once():
    """With their names; one of a single method as it is."""
    alone = "method 'waterfill' has no plan: too few layers"
    reasons = {
        method: f"method {method!r} needs sums, and these statistics hold none"
        for method in ("eva", "wanda", "lora_ga")
    }
    comparison = Comparison.model_construct(left_out={**reasons, "waterfill": alone})

    assert left_out_lines(comparison) == [
        "eva, wanda, lora_ga (3 methods): each needs sums, and these statistics hold none",
        alone,
    ]
