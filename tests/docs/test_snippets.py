"""The documentation does what it says: each page's commands and code run, in order, once.

One stack serves all pages. A page has a folder of its own, with the rows, the plan and the
trained adapter that it takes as given; ``job_...`` stands for the job that the page has named
last, and where it has named none for one that was there before.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo.stack import running_stack

from fimlora_client import Client
from support import stand_ins
from support.model_folders import make_decoder, minilm_folder
from support.seeing import make_llava
from support.snippets import READ, RUN, Fence, fences, sections
from support.transcripts import agrees, commands_of
from support.workers import PYTHONPATH

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs/how-to").glob("*.md"),
    *(ROOT / "docs/explanation").glob("*.md"),
    *(ROOT / "docs/methods").glob("*.md"),
    *(ROOT / "docker").rglob("*.md"),
    ROOT / "benchmarks/README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "README.md",
]
FENCES = {page.relative_to(ROOT).as_posix(): fences(page) for page in sorted(PAGES)}
RUNNING = [name for name, blocks in FENCES.items() if any(block.is_run for block in blocks)]
# The one that locks the stack comes last.
RUNNING.sort(key=lambda name: (name.endswith("keys.md"), name))
NEXT = {"open": "socket", "parse": "date", "sort": "list"}
ROWS = [
    {"text": f"{verb} the {noun} number {n}", "label": verb}
    for n in range(8)
    for verb, noun in NEXT.items()
]
ANSWERED = [{"prompt": f"w{n} w{n + 1}", "completion": f" w{n + 2}"} for n in range(24)]
IDS = {
    "job": r"\bjob_[0-9a-f]{23}\b",
    "ds": r"\bds_[0-9a-f]{20,}\b",
    "ad": r"\bad_[0-9a-f]{20,}\b",
    "sha256": r"\bsha256:[0-9a-f]{64}\b",
}
# What is there when a page has been followed to its end.
LEFT = {
    "docs/tutorial.md": ["adapter/adapter_config.json", "adapter/rank_map.svg"],
    "docs/how-to/train.md": [
        "trained/adapter_model.safetensors",
        "trained-sft/adapter_model.safetensors",
        "padded/adapter_model.safetensors",
    ],
    "docs/how-to/library.md": [
        "staged/adapter_config.json", "adapter/adapter_model.safetensors",
    ],
    "docs/how-to/http.md": ["adapter_config.json", "adapter/rank_map.json"],
}  # fmt: skip
pytestmark = pytest.mark.slow


@dataclass
class Reader:
    """Somebody who follows one page."""

    folder: Path
    url: str
    environment: dict[str, str]
    ids: dict[str, str]
    names: dict[str, Any] = field(default_factory=dict)

    def fill_in(self, text: str) -> str:
        """The address and the ids that a page cannot know."""
        text = re.sub(r"http://(localhost|127\.0\.0\.1):8000", self.url, text)
        text = re.sub(
            r"\b(localhost|127\.0\.0\.1):8000", self.url.removeprefix("http://"), text
        )
        for kind, known in self.ids.items():
            text = re.sub(rf"\b{kind}[_:](\.\.\.|…)", lambda _, known=known: known, text)
        return text

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """As a shell would that goes on from block to block."""
        kept = self.folder.parent / "shell"
        kept.touch()
        script = f". '{kept}'\nset -ae\n{self.fill_in(command)}\n"
        ends = f"{{ export -p; echo \"cd '$PWD'\"; }} > '{kept}'\n"
        ran = subprocess.run(
            ["bash", "-c", f"{script}{ends}"],
            cwd=self.folder, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        for kind, pattern in IDS.items():
            if found := re.findall(pattern, ran.stdout):
                self.ids[kind] = found[-1]
        return ran


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A running stack with two models, and a result to speak of."""
    root = tmp_path_factory.mktemp("stack")
    models = {
        "minilm": minilm_folder(),
        "my-model": make_decoder(root / "decoder", chat=True),
        SEES: make_llava(root / "sees"),
    }
    with running_stack(root / "data") as running, Client(running.url) as client:
        (root / "data/models").mkdir(exist_ok=True)
        for name, folder in models.items():
            (root / "data/models" / name).symlink_to(folder)
        dataset = client.datasets.upload(ROWS)
        job = client.calibrate(base_model="minilm", dataset=dataset.id, budget=8)
        job.wait(timeout=120)
        job.download(root / "given/planned")
        train_a_little(root / "given/planned", root / "given/trained")
        for name, folder in models.items():
            (root / "given" / name).symlink_to(folder)
        for name, rows in {"rows": ROWS, "train": ROWS, "test": ROWS, "sft": ANSWERED}.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / "given" / f"{name}.jsonl").write_text(lines)
        (root / "bin").mkdir()
        stand_ins.install(root / "bin")
        yield running, root, {"job": job.id, "ds": dataset.id}


def train_a_little(planned: Path, into: Path) -> None:
    """An adapter of the plan whose B is not zero, as training leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=3)
    config = LoraConfig.from_pretrained(planned)
    config.base_model_name_or_path = base.name_or_path
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    model.save_pretrained(into)


@pytest.fixture
def reader(stack, tmp_path, monkeypatch) -> Reader:
    """In a folder with what pages take as given, and the examples."""
    running, root, ids = stack
    folder = tmp_path / "page"
    shutil.copytree(root / "given", folder, symlinks=True)
    shutil.copytree(ROOT / "clients/examples", folder, dirs_exist_ok=True)
    environment = os.environ | {
        "FIMLORA_URL": running.url,
        "FIMLORA_DATA_DIR": str(root / "data"),
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([PYTHONPATH, str(ROOT)]),
        "COLUMNS": "80",
        "NO_COLOR": "1",
    }
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FIMLORA_URL", running.url)
    return Reader(folder, running.url, environment, dict(ids), given())


def given() -> dict[str, Any]:
    """The names that code on pages takes as given: a model, and what it is measured on."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    batch = tokenizer([row["text"] for row in ROWS[:4]], padding=True, return_tensors="pt")
    batch["labels"] = batch["input_ids"][:, 1] % 2
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
    return {"base_model": model, "dataloader": [dict(batch)]}


@pytest.mark.parametrize("name", FENCES, ids=str)
def test_every_fence_says_what_it_is(name):
    """A language that is run or read; or the reason why it is not run, or the file it shows."""
    for fence in FENCES[name]:
        assert fence.language in (*RUN, *READ), f"{name}:{fence.line}"
        if shown := fence.words.get("title"):
            assert (ROOT / shown).read_text() == fence.text, f"{name}:{fence.line}: make docs"
        assert len(fence.words.get("no-run", "a long enough reason")) > 10


@pytest.mark.parametrize("name", FENCES, ids=str)
def test_what_is_shown_as_data_is_data(name):
    """JSON, YAML and TOML are read by their own readers."""
    readers = {
        "json": json.loads,
        "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
        "yaml": yaml.safe_load,
        "toml": tomllib.loads,
    }
    for fence in FENCES[name]:
        if fence.language in readers and "no-run" not in fence.words:
            readers[fence.language](fence.text)


@pytest.mark.parametrize("name", RUNNING, ids=str)
def test_a_page_does_what_it_says(name, reader):
    """All of its commands succeed, transcripts print what they show, and its code runs."""
    for fence in FENCES[name]:
        if fence.is_run:
            follow(fence, reader, f"{name}:{fence.line}")

    assert [file for file in LEFT.get(name, []) if not (reader.folder / file).is_file()] == []


def follow(fence: Fence, reader: Reader, place: str) -> None:
    """Do what one block says."""
    if fence.language == "python":
        code = compile(reader.fill_in(fence.text), place, "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as for a reader, whom libraries warn
            exec(code, reader.names)
    elif fence.language == "sh":
        ran = reader.run(fence.text)
        assert ran.returncode == 0, f"{place}\n{fence.text}\n{ran.stdout}"
    else:
        for command in commands_of(fence.text):
            ran = reader.run(command.line)
            assert agrees(command, ran.stdout), f"{place}: {command.line}\n{ran.stdout}"


def test_the_jobs_of_clusters_begin_with_what_is_pinned(reader):
    """The batch file as it stands, and the command of the TrainJob; the training is run above."""
    (reader.folder / "hf_trainer.py").write_text(BEGINNING)
    job = yaml.safe_load((reader.folder / "kubeflow/trainjob.yaml").read_text())
    *shell, command = job["spec"]["trainer"]["command"]
    for place, here in {"/work/": "work/", "/data/": "", "/models/": ""}.items():
        command = command.replace(place, here)
    planned = json.loads((reader.folder / "planned/adapter_config.json").read_text())

    pinned = reader.run("fimlora pin docstrings prod job_...")
    batch = reader.run("bash slurm/train.sbatch docstrings:prod minilm train.jsonl trained")
    cluster = reader.run(command)

    assert shell == ["bash", "-ceu"]
    assert pinned.returncode == 0, pinned.stdout
    for ran in (batch, cluster):
        assert ran.returncode == 0, ran.stdout
        assert json.loads(ran.stdout.splitlines()[-1]) == planned["rank_pattern"]


# What a training script is given, looked at as far as to its first step.
BEGINNING = """\
import json, sys
from pathlib import Path

model, plan, rows, output, _, pattern = sys.argv[1:]
assert json.loads(Path(pattern).read_text())["rank_map"]["modules"]
assert (Path(model) / "config.json").is_file() and Path(rows).is_file()
print(json.dumps(json.loads((Path(plan) / "adapter_config.json").read_text())["rank_pattern"]))
"""


def test_what_needs_a_gpu_is_at_least_python():
    """Nothing more can be said of it here."""
    file = ROOT / "clients/examples/unsloth_sft.py"

    compile(file.read_text(), str(file), "exec")


ENCODER, DECODER, SEES = "minilm", "my-model", "sees"
# What each shape of the page on datasets is measured with, and as what.
SHAPES: dict[str, tuple[str, str, dict[str, str]]] = {
    "Text and label": (ENCODER, "single_label_classification", {}),
    "Two texts and label": (ENCODER, "single_label_classification", {}),
    "Text and amount": (ENCODER, "regression", {}),
    "Plain text": (DECODER, "causal_lm", {}),
    "Prompt and completion": (DECODER, "causal_lm", {}),
    "Prompt and completion as messages": (DECODER, "causal_lm", {}),
    "Conversations": (DECODER, "causal_lm", {}),
    "Conversations with tools": (DECODER, "causal_lm", {}),
    "Images in messages": (SEES, "multimodal_lm", {}),
    "Images beside prompts": (SEES, "multimodal_lm", {}),
    "ShareGPT": (DECODER, "causal_lm", {}),
    "Alpaca": (DECODER, "causal_lm", {}),
    "Text and label in CSV": (ENCODER, "single_label_classification", {}),
    "Other names of columns": (
        ENCODER, "single_label_classification", {"text": "review", "label": "stars"},
    ),
}  # fmt: skip
SHOWN = sections(ROOT / "docs/datasets.md", "jsonl") | sections(
    ROOT / "docs/datasets.md", "csv"
)


def test_every_shape_of_rows_is_measured_below():
    """A shape that is added to the page is added here."""
    assert SHOWN.keys() == SHAPES.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_a_shape_are_measured(shape, stack, tmp_path):
    """Uploaded as they stand on the page, all three of them, and taken for what it says."""
    running, _, _ = stack
    model, kind, columns = SHAPES[shape]
    file = tmp_path / f"rows.{SHOWN[shape].language}"
    file.write_text(SHOWN[shape].text)
    quick = {
        "n_batches": 1,
        "batch_size": 3,
        "max_length": 64,
        "signal": False,
        "head": "fresh",
    }

    with Client(running.url) as client:
        dataset = client.datasets.upload(file)
        job = client.calibrate(
            base_model=model,
            dataset={"source": "upload", "id": dataset.id, "columns": columns},
            budget=2,
            calibration=quick,
        )
        provenance = job.wait(timeout=120).rank_map.provenance

    assert dataset.rows == 3
    assert (provenance.get("problem_type") or provenance["task"]) == kind
    assert provenance["n_examples"] == 3
