"""ms-swift starts from the exported folder, by the exported arguments."""

import shlex
from pathlib import Path

import pytest

from support.peft_models import planned, resolved

pytestmark = pytest.mark.consumer("ms-swift")

EXAMPLE = Path(__file__).parents[2] / "clients/examples/ms_swift/train.sh"
# The tiny model's family cannot be told from its name; the data are not read here.
REST = ["--dataset", "rows.jsonl", "--model_type", "llama", "--template", "dummy"]
CPU = ["--torch_dtype", "float32", "--use_hf", "true"]


def prepared(llama, line: str):
    """The model that ``swift sft`` with these arguments would train."""
    from swift import SftArguments
    from swift.pipelines.train.tuner import TunerMixin
    from swift.utils import parse_args

    arguments, unknown = parse_args(SftArguments, [*shlex.split(line), *REST, *CPU])
    assert unknown == []
    return TunerMixin.prepare_model(arguments, llama.load())


def test_it_takes_the_arguments_of_the_example(llama, tmp_path):
    """Its parser knows each of them: those of the export, and those that the script adds."""
    from swift import SftArguments
    from swift.utils import parse_args

    llama.write_adapter(tmp_path / "adapter")
    script = EXAMPLE.read_text().partition("\nswift sft ")[2].replace("\\\n", " ")
    line = llama.export("ms-swift").splitlines()[-1]
    added = shlex.split(script.replace("$(tail -n 1 lora.txt)", "").replace("$2", "rows.jsonl"))

    assert "--dataset" in added
    arguments, unknown = parse_args(SftArguments, [*shlex.split(line), *added, *REST[2:], *CPU])
    assert unknown == []
    assert arguments.num_train_epochs == 1


def test_its_loader_resolves_the_plan(llama, tmp_path):
    """Its own parser and loader, which know no patterns, give every module its rank."""
    llama.write_adapter(tmp_path / "adapter")

    model = prepared(llama, llama.export("ms-swift").splitlines()[-1])

    assert resolved(model) == planned(llama.plan)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)
