"""A text-classification dataset that every machine has: Python's own docstrings.

The label of a docstring is the package of the standard library it comes from. The sources
are parsed, not imported, and read in sorted order, so the same Python gives the same rows.
`python -m demo.docstrings FILE.jsonl` writes them.
"""

import ast
import json
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

MIN_WORDS = 5
MIN_ROWS_PER_CLASS = 40
MAX_ROWS_PER_CLASS = 250
MAX_CHARS = 600
# Not part of every installation, or gone from newer ones: they would change the classes.
LEFT_OUT = frozenset(
    {"distutils", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tkinter"}
)

Row = dict[str, str]


def build_rows(root: Path | None = None) -> list[Row]:
    """Rows of ``text`` and ``label``, the classes of a text spread evenly over the whole.

    Args:
        root: Folder of the standard library; the running Python's own by default.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    by_label: dict[str, list[str]] = defaultdict(list)
    for package in sorted(root.iterdir()):
        if package.name not in LEFT_OUT and (package / "__init__.py").is_file():
            by_label[package.name] = list(dict.fromkeys(_docstrings_under(package)))
    large = {k: v for k, v in by_label.items() if len(v) >= MIN_ROWS_PER_CLASS}
    spread = [
        (place / len(texts), label, text)
        for label, texts in large.items()
        for place, text in enumerate(texts[:MAX_ROWS_PER_CLASS])
    ]
    return [{"text": text, "label": label} for _, label, text in sorted(spread)]


def write_jsonl(rows: list[Row], path: Path) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _docstrings_under(package: Path) -> Iterator[str]:
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package).parts
        if not any(part.startswith("test") for part in inside):
            yield from _docstrings_in(file)


def _docstrings_in(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text.split()) >= MIN_WORDS:
                yield text[:MAX_CHARS]


def main() -> int:
    """Write the rows into the file that is named."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.stderr.write("name a file to write: python -m demo.docstrings FILE.jsonl\n")
        return 2
    try:
        write_jsonl(build_rows(), Path(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"cannot write {sys.argv[1]}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
