"""``fimlora diff``: results by any name, what has moved beside noise, and exit codes for CI."""

import json

import pytest
from typer.testing import CliRunner

from fimlora_client.cli import app
from support.rank_maps import map_of


@pytest.fixture
def write(tmp_path):
    """Write a rank map of two modules into a file; answers its path."""

    def write(name, q=8, k=8, **more):
        path = tmp_path / f"{name}.json"
        ranks = {"h.0.q_proj": (q, float(q)), "h.0.k_proj": (k, float(k))}
        path.write_text(map_of(ranks, **more).model_dump_json())
        return path

    return write


def plain(text):
    """What stands in a framed message, on one line."""
    return " ".join(text.replace("│", " ").split())


class TestGate:
    @pytest.mark.parametrize(
        ("noise", "code", "sentence"),
        [
            ((0.01, 0.02), 6, "drift: 25% of the ranks moved, above the limit of 5%; "),
            ((0.3, 0.4), 0, "above the limit of 5%, but within the noise: other rows would"),
            (None, 6, "what other rows would move is not known"),
        ],
    )
    def test_the_exit_code_says_whether_it_drifted(self, run, write, noise, code, sentence):
        """6 is for drift alone; the sentence has what moved, the limit and the noise."""
        a, b = write("a", noise=noise), write("b", 12, 4, noise=noise)

        found = run("diff", a, b, "--fail-above", "5%")

        assert (found.exit_code, sentence in found.stderr) == (code, True), found.output
        assert "2 of 2 modules differ, 8 ranks moved (25%)" in found.stdout
        assert run("diff", a, b).exit_code == 0
        assert run("diff", a, a, "--fail-above", "0").exit_code == 0

    def test_json_has_all_figures_and_the_judgement(self, run, write):
        """Also when it fails; standard output is JSON alone."""
        a, b = write("a", noise=(0.01, 0.02)), write("b", 12, 4, noise=(0.01, 0.02))

        found = run("diff", a, b, "--fail-above", "ranks=5%", "--json")
        loose = json.loads(run("diff", a, b, "--json").stdout)

        shown = json.loads(found.stdout)
        assert found.exit_code == 6
        assert shown["a"] == {"name": str(a), "digest": None}
        assert shown["drift"]["share_moved"] == shown["drift"]["share_of_scores_moved"] == 0.25
        assert shown["drift"]["rank_noise"] == pytest.approx(0.01)
        assert shown["judgement"]["fails"] is True
        assert [kind["of"] for kind in shown["judgement"]["kinds"]] == ["ranks"]
        assert loose["judgement"] is None

    def test_markdown_has_the_verdict_first_and_the_map(self, run, write):
        """As a comment shows it; the map has what a rank was where it has changed."""
        a, b = write("a", noise=(0.01, 0.02)), write("b", 12, 4, noise=(0.01, 0.02))

        text = run("diff", a, b, "--fail-above", "5%", "--markdown").stdout

        assert text.splitlines()[2].startswith("❌ **drift: 25% of the ranks moved")
        assert "| ranks | 25% | 1% | 5% |" in text
        assert "| `h.0.q_proj` | 8 | 12 | +4 |" in text
        assert "| 0 | 8 → **12** | 8 → **4** |" in text

    def test_other_experts_at_equal_ranks_are_shown_and_fail(self, run, tmp_path):
        """In the table, in Markdown and in JSON; a limit for all kinds is theirs, too."""
        paths = []
        for name, experts in {"a": [0, 1, 2, 7], "b": [3]}.items():
            plan = map_of(
                {"h.0.experts.up": (8, 1.0)},
                n_experts=8,
                experts={"h.0.experts.up": experts},
            )
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(plan.model_dump_json())

        shown = run("diff", *paths, "--fail-above", "50%")
        markdown = run("diff", *paths, "--markdown").stdout
        change = json.loads(run("diff", *paths, "--json").stdout)["modules"][0]

        assert shown.exit_code == 6
        assert "no rank differs in 1 modules" in shown.stdout
        assert "other experts train in 1 modules: 100% of them moved" in shown.stdout
        assert "0-2, 7" in shown.stdout
        assert "100% of the experts moved, above the limit of 50%" in plain(shown.stderr)
        assert "No rank differs. Other experts train in 1." in markdown
        assert "| experts | 100% | - | - |" in markdown
        assert "| `h.0.experts.up` | 8 | 8 | +0 | 0-2, 7 | 3 |" in markdown
        assert (change["experts_a"], change["experts_b"]) == ([0, 1, 2, 7], [3])
        assert run("diff", paths[0], paths[0], "--fail-above", "0").exit_code == 0

    def test_names_become_no_markup(self, run, tmp_path):
        """A name from a file calls nobody and opens no tag, and ends no cell of a table."""
        for file, rank in {"a.json": 8, "b.json": 9}.items():
            plan = map_of({"a`|\n@user <img src=x>": (rank, 1.0)})
            (tmp_path / file).write_text(plan.model_dump_json())

        text = run("diff", tmp_path / "a.json", tmp_path / "b.json", "--markdown").stdout

        assert "| `a???@user <img src=x>` | 8 | 9 | +1 |" in text

    @pytest.mark.parametrize("limit", ["5", "120%", "much", "kinds=5%"])
    def test_a_limit_that_is_none_is_refused(self, run, write, limit):
        """Before anything is asked: 5 may mean 5 percent."""
        found = run("diff", write("a"), "job_none", "--fail-above", limit)

        assert found.exit_code == 2
        assert "5%" in found.stderr


class TestNames:
    def test_any_mix_of_names_leads_to_the_same_result(self, run, rows, tmp_path):
        """A job, its digest, its pin in both spellings, its folder and its file: no drift."""
        folder = tmp_path / "adapter"
        done = run(
            "calibrate",
            "tiny",
            rows,
            "--batches",
            2,
            "--budget",
            4,
            "--output",
            folder,
            "--json",
        )
        job = json.loads(done.stdout)
        digest = job["result"]["digest"]
        run("pin", "task", "prod", job["id"])
        names = [job["id"], digest, "task:prod", "task/prod", folder, folder / "rank_map.json"]

        shown = [run("diff", job["id"], name, "--fail-above", "0", "--json") for name in names]

        assert [found.exit_code for found in shown] == [0] * len(names), shown[-1].output
        drifts = [json.loads(found.stdout)["drift"] for found in shown]
        assert all(drift == drifts[0] for drift in drifts)
        assert drifts[0]["rank_noise"] is not None
        assert [json.loads(found.stdout)["b"]["digest"] for found in shown] == [digest] * 4 + [
            None
        ] * 2

    def test_files_need_no_service(self, write, tmp_path, monkeypatch):
        """Nothing is asked of an address where nobody answers."""
        monkeypatch.setenv("FIMLORA_URL", "http://127.0.0.1:1")

        found = CliRunner().invoke(app, ["diff", str(write("a")), str(write("b"))])

        assert found.exit_code == 0, found.output

    @pytest.mark.parametrize(
        ("name", "code", "words"),
        [
            ("job_none", 3, "fimlora jobs"),
            ("task:none", 3, "nothing is pinned"),
            ("sha256:" + "0" * 64, 3, ""),
            ("sha256:12", 2, "is no result"),
            ("what is this", 2, "a pin (NAME:TAG)"),
            ("./nowhere", 1, "No such file"),
        ],
    )
    def test_what_is_not_there_says_what_is_allowed(self, run, write, name, code, words):
        """Each kind of name has its own next step."""
        found = run("diff", write("a"), name)

        assert (found.exit_code, words in plain(found.stderr)) == (code, True), found.output

    def test_a_folder_that_is_called_like_a_pin_is_no_guess(
        self, run, write, tmp_path, monkeypatch
    ):
        """Either may be meant, so both spellings are offered."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "task" / "prod").mkdir(parents=True)

        found = run("diff", write("a"), "task/prod")

        assert found.exit_code == 2
        assert "task:prod or ./task/prod" in plain(found.stderr)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "[]",
            lambda text: "not json",
            lambda text: text.replace('"rank":8', '"rank":-8', 1),
            lambda text: text.replace('"score":8.0', '"score":NaN', 1),
            lambda text: text.replace('"score":8.0', '"score":1e999', 1),
            lambda text: text.replace("q_proj", "k_proj"),
            lambda text: text.replace('"ranks":16', '"ranks":17'),
            lambda text: text.replace('"ranks":16,', ""),
        ],
    )
    def test_a_file_that_is_no_rank_map_is_refused(self, run, write, change):
        """By name and reason, with no figures made of nonsense."""
        good, bad = write("good"), write("bad")
        text = bad.read_text()
        assert change(text) != text
        bad.write_text(change(text))

        found = run("diff", good, bad)

        assert (found.exit_code, found.stdout) == (1, "")
        assert "is no rank map" in found.stderr
