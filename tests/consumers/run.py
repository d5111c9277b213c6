"""Give each tool that reads exports an environment of its own, and run its tests there.

    python tests/consumers/run.py              # all of them, one after the other
    python tests/consumers/run.py axolotl vllm

``requirements/NAME.txt`` pins everything: the tool as released, and of what it depends on
only what its loading code imports, so that no tool brings CUDA's libraries. The
environments stay in ``.consumers/`` and are made anew when the pins change.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".consumers"
REQUIREMENTS = {path.stem: path for path in sorted((HERE / "requirements").glob("*.txt"))}
TORCH = "torch==2.13.0"  # with its dependencies, as the platform has it
# The converter is a script that no wheel carries.
SOURCES = {"llama-cpp": ("llama_cpp_python==0.3.36", "vendor/llama.cpp")}
CONVERTER_PARTS = ("convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/")


def main() -> int:
    """Run the named consumers' tests, or all; the exit code tells whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(REQUIREMENTS))
    names = parser.parse_args().names or list(REQUIREMENTS)
    if unknown := sorted(set(names) - set(REQUIREMENTS)):
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(REQUIREMENTS)}")
    failed = [name for name in names if not passes(name)]
    tell(f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(names)}")
    return len(failed) > 0


def passes(name: str) -> bool:
    """Whether a consumer can be installed and its tests pass."""
    tell(f"{name}: {REQUIREMENTS[name].read_text().splitlines()[0].lstrip('# ')}")
    started = time.monotonic()
    try:
        python = installed(name)
        tell(f"{name}: environment after {time.monotonic() - started:.0f} s")
        run_tests(python, name)
    except subprocess.CalledProcessError as error:
        tell(f"{name}: {error}")
        return False
    return True


def installed(name: str) -> Path:
    """The interpreter of a consumer's environment, made if its pins are new."""
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    pins = REQUIREMENTS[name].read_text()
    if stamp.exists() and stamp.read_text() == pins:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", TORCH], check=True)
    # Not what the pinned packages ask for: they would pull in other releases of torch.
    command = [*pip, "install", "--quiet", "--no-deps", "--requirement", REQUIREMENTS[name]]
    subprocess.run(command, check=True)
    if name in SOURCES:
        fetch_sources(pip, folder / "sources", *SOURCES[name])
    stamp.write_text(pins)
    return python


def fetch_sources(pip: list, folder: Path, package: str, inside: str) -> None:
    """Unpack the converter from a source distribution, without building that."""
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder]
    subprocess.run([*pip, "download", *options, package], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            _, found, path = member.name.partition(f"/{inside}/")
            if found and path.startswith(CONVERTER_PARTS):
                tar.extract(member.replace(name=path), folder, filter="data")
    archive.unlink()


def run_tests(python: Path, name: str) -> None:
    """The consumer's tests, without the plugins that other folders need."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {
        "FIMLORA_CONSUMER": name,
        "FIMLORA_CONSUMER_SOURCES": str(ENVIRONMENTS / name / "sources"),
        "HF_HUB_OFFLINE": "1",
    }
    options = ["--confcutdir", HERE, "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    tests = HERE / f"test_{name.replace('-', '_')}.py"
    subprocess.run(
        [python, "-m", "pytest", "-q", *options, tests], cwd=ROOT, env=env, check=True
    )


def tell(line: str) -> None:
    """Say what is going on, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
