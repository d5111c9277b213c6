"""A tokenizer's chat template, rendered under limits of time, memory and length.

The rendering is done by a process of its own (`template_process`), started with the first
conversation; what it does to itself, it does not do to the worker.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from fimlora_jobs.datasets.columns import NO_CHAT_TEMPLATE
from fimlora_worker.errors import DatasetSchema, UnsupportedArchitecture

log = logging.getLogger(__name__)
PROCESS = "fimlora_worker.inputs.chat.template_process"
GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# All that the process may know of this one: what is secret here stays here.
ENVIRONMENT = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR",
)  # fmt: skip
# Threads that libraries start as they are imported would count against its memory.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
WAY_OUT = "use prompt and completion columns with text, or a model with another template"
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What rendering one row may take.

    Attributes:
        max_seconds: By the clock on the wall.
        max_bytes: Of memory, besides the interpreter's own.
        max_chars: Of text that comes out.
        max_spans: Parts of it that lie between generation tags.
    """

    max_seconds: float = 30.0
    max_bytes: int = 1 << 30
    max_chars: int = 4_000_000
    max_spans: int = 100_000


@dataclass(frozen=True, slots=True)
class Request:
    """One rendering that is wanted."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """What came out.

    Attributes:
        text: The conversation as text; empty if there is an error.
        spans: What lies between generation tags, as characters of the text.
        error: What the template said instead.
    """

    text: str = ""
    spans: tuple[Span, ...] = ()
    error: str | None = None


class ChatTemplate:
    """Renders conversations by the template of a tokenizer; ends its process on leaving.

    Args:
        tokenizer: A transformers tokenizer.
        with_tools: Some tokenizers have another template for conversations with tools.
        limits: What one row may take.

    Attributes:
        has_tags: Whether the template marks what the assistant writes.
        read_date: Whether the template has asked what day it is.

    Raises:
        DatasetSchema: The tokenizer has no template.
    """

    def __init__(
        self, tokenizer: Any, *, with_tools: bool = False, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._template = _find_template(tokenizer, with_tools=with_tools)
        self._variables = {
            name: list(map(str, token)) if isinstance(token, list) else str(token)
            for name, token in tokenizer.special_tokens_map.items()
        }
        self._process: subprocess.Popen[str] | None = None
        self.has_tags = bool(GENERATION_TAG.search(self._template))
        self.read_date = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def render(self, requests: Sequence[Request], *, where: str) -> list[Rendered]:
        """Render what belongs to one row; all of it together has the limit of time.

        Raises:
            UnsupportedArchitecture: The template takes too long, or is none.
        """
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            # Dates and such become text, as in JSONL.
            process.stdin.write(json.dumps([*map(asdict, requests)], default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UnsupportedArchitecture(self._epitaph(process, where))
        reply = json.loads(line)
        self.read_date |= reply["read_date"]
        return [_rendered(answer) for answer in reply["answers"]]

    def _start(self) -> "subprocess.Popen[str]":
        settings = {
            "template": self._template, "variables": self._variables, "has_tags": self.has_tags,
            **asdict(self._limits),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROCESS],  # nothing from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={n: os.environ[n] for n in ENVIRONMENT if n in os.environ} | ONE_THREAD,
        )
        self._process = process
        assert process.stdin
        process.stdin.write(json.dumps(settings) + "\n")
        return process

    def _epitaph(self, process: "subprocess.Popen[str]", where: str) -> str:
        """Why there is no answer."""
        code = process.wait()
        self.__exit__(None, None, None)
        log.warning("chat_template.ended", extra={"status": code})
        if code == -signal.SIGALRM:
            return (
                f"{where}: the model's chat template takes more than "
                f"{self._limits.max_seconds:g} seconds; {WAY_OUT}"
            )
        return f"{where}: the model's chat template cannot be rendered here; {WAY_OUT}"


def _find_template(tokenizer: Any, *, with_tools: bool) -> str:
    if not tokenizer.chat_template:
        raise DatasetSchema(NO_CHAT_TEMPLATE)
    try:
        # Which tools they are does not matter for the choice.
        return str(tokenizer.get_chat_template(tools=[{}] if with_tools else None))
    except ValueError as error:
        raise UnsupportedArchitecture(
            "the model's tokenizer has several chat templates and none that is called default"
        ) from error


def _rendered(answer: Mapping[str, Any]) -> Rendered:
    if "unsound" in answer:
        raise UnsupportedArchitecture(
            f"the model's chat template is not sound: {answer['unsound']}; {WAY_OUT}"
        )
    if "error" in answer:
        return Rendered(error=answer["error"])
    return Rendered(answer["text"], tuple((start, end) for start, end in answer["spans"]))
