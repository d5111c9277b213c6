"""Stand-ins for tools that are not installed: each looks at what it is given, as the tool would.

``python stand_ins.py NAME ARGUMENT...`` ends with 1 and a sentence where the tool could not begin.
"""

import os
import shutil
import sys
from pathlib import Path

import yaml

SERVER_RANKS = ("1", "8", "16", "32", "64", "128", "256", "320", "512")


def axolotl(command: str, file: str) -> None:
    """Patterns of the plan beside what a run needs."""
    settings = yaml.safe_load(Path(file).read_text())
    assert command == "train"
    assert settings["lora_rank_pattern"].keys() == settings["lora_alpha_pattern"].keys()
    assert settings["lora_target_modules"]
    assert settings["datasets"]
    assert settings["output_dir"]


def llamafactory_cli(command: str, file: str) -> None:
    """A folder with weights to train on."""
    settings = yaml.safe_load(Path(file).read_text())
    assert (command, settings["stage"]) == ("train", "sft")
    assert settings["create_new_adapter"] is False
    _has_weights(settings["adapter_name_or_path"])


def swift(command: str, *arguments: str) -> None:
    """Likewise, and rows."""
    options = _options(arguments)
    assert command == "sft"
    assert options["--model"]
    assert Path(options["--dataset"]).is_file()
    _has_weights(options["--adapters"])


def vllm(command: str, model: str, flag: str, *arguments: str) -> None:
    """A trained adapter, and a rank that there are buffers for."""
    options = _options(arguments)
    assert (command, flag) == ("serve", "--enable-lora")
    assert options["--max-lora-rank"] in SERVER_RANKS
    _has_weights(options["--lora-modules"].partition("=")[2])


def lm_eval(*arguments: str) -> None:
    """A model and a trained adapter."""
    options = _options(arguments)
    named = dict(pair.split("=") for pair in options["--model_args"].split(","))
    assert named["pretrained"]
    assert options["--tasks"]
    _has_weights(named["peft"])


def srun(*command: str) -> None:
    """One task, here."""
    os.execvp(command[0], command)


def torchrun(*command: str) -> None:
    """One process."""
    os.execvp(sys.executable, [sys.executable, *command])


TOOLS = {
    "axolotl": axolotl,
    "llamafactory-cli": llamafactory_cli,
    "swift": swift,
    "vllm": vllm,
    "lm_eval": lm_eval,
    "srun": srun,
    "torchrun": torchrun,
}


def install(folder: Path) -> None:
    """Put all of them, and this Python, into a folder for the search path."""
    lines = {name: f'{sys.executable} {__file__} {name} "$@"' for name in TOOLS}
    lines |= {"python": f'{sys.executable} "$@"'}
    lines |= {"fimlora": f'{sys.executable} -m fimlora_client.cli "$@"'}
    for name, line in lines.items():
        if name in {"python", "fimlora"} or shutil.which(name) is None:
            (folder / name).write_text(f"#!/bin/sh\nexec {line}\n")
            (folder / name).chmod(0o755)


def _options(arguments: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def _has_weights(folder: str) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (Path(folder) / name).is_file(), f"{folder} has no {name}"


if __name__ == "__main__":
    TOOLS[sys.argv[1]](*sys.argv[2:])
