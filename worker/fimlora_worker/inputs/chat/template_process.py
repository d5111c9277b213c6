"""Render one chat template, in a process of its own: ``python -m ...template_process``.

Templates come from strangers. Jinja's sandbox keeps them from the machine, but not from its
time and memory: one power of two integers holds the interpreter until it is done, and no
thread can interrupt it. Here an alarm of the kernel ends the process, and its memory has a
limit. As nothing else runs here, the clock that templates ask for the date can be replaced.

Each line of standard input is a request, each line of standard output its answer, in JSON.
"""

import json
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime, time
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

from fimlora_worker.inputs.chat.template_date import TEMPLATE_DATE

MAX_ERROR_CHARS = 300


def main() -> None:
    """Answer requests until there are no more; the first says what all have in common."""
    settings = json.loads(sys.stdin.readline())
    limit_memory(settings["max_bytes"])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    clock = Clock()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, settings["max_seconds"])
        answers = [_answer(request, settings, clock) for request in json.loads(line)]
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(json.dumps({"answers": answers, "read_date": clock.was_read}) + "\n")
        sys.stdout.flush()


def limit_memory(max_bytes: int) -> None:
    """Have the kernel refuse this process more than so much memory beyond what it has."""
    if sys.platform == "linux":  # elsewhere the alarm has to do
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + max_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Clock:
    """What templates call ``strftime_now``: always the same day.

    Attributes:
        was_read: Whether a template has asked.
    """

    def __init__(self) -> None:
        self.was_read = False

    def strftime(self, form: str) -> str:
        """The day in the form a template wants."""
        self.was_read = True
        return datetime.combine(TEMPLATE_DATE, time()).strftime(form)


def _answer(
    request: Mapping[str, Any], settings: Mapping[str, Any], clock: Clock
) -> dict[str, Any]:
    try:
        return _render(request, settings, clock)
    except MemoryError:
        return {"error": f"it needs more than {settings['max_bytes'] >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it calls itself too deeply"}
    except jinja2.TemplateSyntaxError as error:
        return {"unsound": f"{_sentence(error)} in line {error.lineno}"}
    except Exception as error:  # templates raise whatever they like
        return {"error": _sentence(error)}


def _render(
    request: Mapping[str, Any], settings: Mapping[str, Any], clock: Clock
) -> dict[str, Any]:
    template = settings["template"]
    # A function among the template's variables would not get through: only plain data does.
    compiled = chat_template_utils._compile_jinja_template(template)  # noqa: SLF001
    compiled.environment.globals["strftime_now"] = clock.strftime
    rendered: Any = chat_template_utils.render_jinja_template(
        conversations=[request["messages"]],
        tools=request["tools"],
        chat_template=template,
        return_assistant_tokens_mask=settings["has_tags"],
        add_generation_prompt=request["add_generation_prompt"],
        **settings["variables"],
    )
    [text], spans = rendered
    if len(text) > settings["max_chars"]:
        return {"error": f"it writes more than {settings['max_chars']} characters"}
    if spans and len(spans[0]) > settings["max_spans"]:
        return {"error": f"it marks more than {settings['max_spans']} parts of its text"}
    text.encode()  # half a character is none that a tokenizer knows
    return {"text": text, "spans": spans[0] if spans else []}


def _sentence(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it writes half a character (a lone surrogate)"
    return " ".join(str(error).split())[:MAX_ERROR_CHARS] or type(error).__name__


if __name__ == "__main__":
    main()
