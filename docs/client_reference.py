"""The reference of the Python client, read from its source: signatures and docstrings."""

import ast
import re
import textwrap
from collections.abc import Iterator

from blocking import CLIENT

# What a user writes before the dot, and where the class behind it is defined.
CLASSES = {
    "client": ("blocking/client.py", "Client"),
    "client.jobs": ("blocking/jobs.py", "Jobs"),
    "client.evaluations": ("blocking/evaluations.py", "Evaluations"),
    "client.rank_patterns": ("blocking/rank_patterns.py", "RankPatterns"),
    "client.datasets": ("blocking/catalogues.py", "Datasets"),
    "client.adapters": ("blocking/adapters.py", "Adapters"),
    "client.models": ("blocking/catalogues.py", "Models"),
    "client.workers": ("blocking/catalogues.py", "Workers"),
    "client.cache": ("blocking/catalogues.py", "Cache"),
    "client.keys": ("blocking/keys.py", "Keys"),
    "job": ("blocking/handle.py", "JobHandle"),
    "evaluation": ("blocking/evaluations.py", "EvaluationHandle"),
    "result": ("results.py", "Result"),
    "fetched": ("patterns.py", "FetchedPattern"),
}
FIELDS = (
    "CalibrationFields",
    "EvaluationFields",
    "PlanFields",
    "ComparisonFields",
    "JobComparisonFields",
    "TruncationFields",
)
INTRO = """\
# The Python client

Made by `make docs` from signatures and docstrings. `AsyncClient` has the same methods, to be
awaited; its events are read with `async for`. Every exception derives from `ClientError` and
carries `code`, `status`, `next_step`, `request_id` and `problem`; each problem code of the
service has a class of its own in `fimlora_client.errors`.

```python
from fimlora_client import Client

with Client("http://localhost:8000") as client:
    job = client.calibrate(base_model="minilm", dataset="ds_…", budget=8)
    result = job.wait()
    client.rank_patterns.pin("sst2", "prod", job_id=job.id)
```
"""


def client_reference() -> str:
    """The whole page."""
    sections = [_section(name, *where) for name, where in CLASSES.items()]
    return "\n".join([INTRO, *sections, *(_fields(name) for name in FIELDS)])


def _section(name: str, file: str, class_name: str) -> str:
    source = (CLIENT / file).read_text(encoding="utf-8")
    found = _class(source, class_name)
    methods = [
        f"**`{name}.{_signature(source, method)}`**\n\n{_markdown(method)}\n"
        for method in _public(found)
    ]
    return "\n".join([f"## {name}\n", f"`{class_name}`. {_markdown(found)}\n", *methods])


def _fields(name: str) -> str:
    """The keyword arguments that a method takes as a whole."""
    source = (CLIENT / "bodies.py").read_text(encoding="utf-8")
    found = _class(source, name)
    lines = [f"- `{ast.unparse(n)}`" for n in found.body if isinstance(n, ast.AnnAssign)]
    return f"## {name}\n\n{_markdown(found)}\n\n" + "\n".join(lines) + "\n"


def _class(source: str, name: str) -> ast.ClassDef:
    nodes = ast.parse(source).body
    return next(n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name)


def _public(found: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for node in found.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        if "classmethod" not in _decorators(node):  # ways to make one are for us
            yield node


def _signature(source: str, method: ast.FunctionDef) -> str:
    """What is written between ``def`` and the colon, on one line, without ``self``."""
    lines = source.splitlines()[method.lineno - 1 : method.body[0].lineno - 1]
    text = " ".join(line.strip() for line in lines).removeprefix("def ").removesuffix(":")
    text = re.sub(r"\( ?(self|cls)(, ?)?", "(", text).replace("( ", "(")
    text = re.sub(r",? \)", ")", text)
    return text.replace("()", "", 1) if "property" in _decorators(method) else text


def _decorators(method: ast.FunctionDef) -> list[str]:
    return [d.id for d in method.decorator_list if isinstance(d, ast.Name)]


def _markdown(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The docstring, with its sections as lists."""
    text = (ast.get_docstring(node) or "").replace("``", "`")
    text = re.sub(r"^(Args|Attributes|Raises):$", r"\1:\n", text, flags=re.MULTILINE)
    return re.sub(r"^    (?=\S)", "- ", textwrap.dedent(text), flags=re.MULTILINE)
