"""A second text-classification dataset that every machine has: functions of the standard library.

The label of a function is the package it comes from; its docstring is left out, so the texts are
code. The sources are parsed, not imported, and read in sorted order.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("asyncio", "email", "unittest")
MIN_LINES, MAX_CHARS = 3, 600

Row = dict[str, str]


def build_rows(root: Path | None = None) -> list[Row]:
    """Rows of ``text`` and ``label``, the classes of a text spread evenly over the whole.

    Args:
        root: Folder of the standard library; the running Python's own by default.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    spread = []
    for label in PACKAGES:
        texts = list(dict.fromkeys(_functions_under(root / label)))
        spread += [(place / len(texts), label, text) for place, text in enumerate(texts)]
    return [{"text": text, "label": label} for _, label, text in sorted(spread)]


def _functions_under(package: Path) -> Iterator[str]:
    for file in sorted(package.rglob("*.py")):
        if any(p.startswith("test") for p in file.relative_to(package).parts):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
                text = ast.unparse(node)
                if text.count("\n") >= MIN_LINES:
                    yield " ".join(text.split())[:MAX_CHARS]
