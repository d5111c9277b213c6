"""The wheel, installed without extras into a clean environment, works without torch."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "fastapi", "redis", "rq", "datasets")
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command; PYTHONPATH must not lend the environment what it lacks."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FIMLORA"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that has the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("fimlora-*.whl")
    venv.create(folder / "venv")  # this interpreter's pip installs there
    bin_ = folder / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    into = ["--python", bin_ / "python", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    installed = run(*pip, *into, wheel)
    assert installed.returncode == 0, installed.stderr
    return bin_


def python(light: Path, code: str) -> subprocess.CompletedProcess[str]:
    return run(light / "python", "-c", code, cwd=light)


def test_nothing_heavy_is_installed(light):
    """The base install is what a CI job can afford."""
    code = f"import importlib.util as u; print([n for n in {HEAVY} if u.find_spec(n)])"

    assert python(light, code).stdout.strip() == "[]"


def test_light_parts_work(light):
    """Client, contract and the torch-free part of the engine."""
    code = """
import fimlora_client, fimlora_contract, fimlora, fimlora.allocation
from fimlora.plan import TargetModule
modules = [TargetModule(n, 64, 64) for n in "ab"]
plan = fimlora.allocate(fimlora.Scores(modules, {"a": 3.0, "b": 1.0}), 8, r_min=4, r_max=16)
print(dict(plan.ranks))
"""
    ran = python(light, code)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "{'a': 12, 'b': 4}"


def test_the_scripts_for_redis_are_in_the_wheel(light):
    """They are no Python files, and worker and service cannot begin without them."""
    code = """
from importlib.resources import files
print(sorted(file.name for file in (files("fimlora_jobs") / "lua").iterdir()))
"""
    in_tree = sorted(path.name for path in (ROOT / "service/fimlora_jobs/lua").iterdir())

    assert python(light, code).stdout.strip() == str(in_tree)


def test_the_page_is_in_the_wheel(light):
    """As it was built: no Node where it is installed."""
    code = """
from importlib.resources import files
static = files("fimlora_service") / "web" / "static"
print(sorted(f"{folder.name}/{file.name}" for folder in (static, static / "assets") for file in folder.iterdir()))
"""
    static = ROOT / "service/fimlora_service/web/static"
    in_tree = sorted(
        f"{folder.name}/{path.name}"
        for folder in (static, static / "assets")
        for path in folder.iterdir()
    )

    assert "static/index.html" in in_tree
    assert python(light, code).stdout.strip() == str(in_tree)


@pytest.mark.parametrize("name", ["measure", "apply_fim_ranks"])
def test_a_heavy_name_says_in_one_line_what_to_install(light, name):
    """Not a missing module deep inside, but the extra's name."""
    code = f"""
import fimlora
try:
    fimlora.{name}
except fimlora.MissingExtra as error:
    print(error)
"""
    ran = python(light, code)

    assert "pip install 'fimlora[engine]'" in ran.stdout, ran.stderr
    assert len(ran.stdout.splitlines()) == 1


def test_the_command_line_starts(light):
    """And tells what `up` would need more."""
    shown = run(light / "fimlora", "--help")
    version = run(light / "fimlora", "--version")
    up = run(light / "fimlora", "up", "--data-dir", light / "data")

    assert "calibrate" in shown.stdout
    assert version.stdout.startswith("fimlora ")
    assert up.returncode == 1
    assert "pip install 'fimlora[all]'" in up.stderr


@pytest.mark.parametrize("name", ["service", "worker"])
def test_a_process_says_in_one_line_which_extra_it_needs(light, name):
    """In place of a traceback."""
    ran = run(light / "python", "-m", f"fimlora_{name}")

    assert ran.returncode == os.EX_UNAVAILABLE
    assert ran.stderr.endswith(f"pip install 'fimlora[{name}]'\n")
    assert len(ran.stderr.splitlines()) == 1


def test_a_config_for_peft_says_what_it_needs(light):
    """The client itself never imports peft."""
    code = """
from fimlora_client import MissingExtra, Result
result = Result(job=None, digest="", adapter_config={}, rank_map=None, artifacts=())
try:
    result.to_lora_config()
except MissingExtra as error:
    print(error)
"""
    assert "pip install 'fimlora[engine]'" in python(light, code).stdout
