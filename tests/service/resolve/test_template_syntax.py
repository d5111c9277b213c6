"""A template's faults are found by reading it; transformers, which compiles it, is the reference."""

import jinja2
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from fimlora_service.resolve.template_syntax import MAX_CHARS, fault_of
from support.model_folders import CHAT_TEMPLATE

SOUND = [
    CHAT_TEMPLATE,
    "",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% if x %}{{ x|nobody_knows }}{% endif %}",
    "{{ x|nobody_knows if x else '' }}",
    "{%- macro f(x) -%}{{ x|tojson(indent=2) }}{%- endmacro -%}{{ f(tools) }}",
    "{{ raise_exception('no system role') }}{{ strftime_now('%Y') }}",
    "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}",
    "{% raw %}{{ not read }}{% endraw %}",
]
BROKEN = [
    "{% if %}",
    "{% for m in messages %}{{ m.content }}",
    "{{ messages[0].content",
    "{% generation %}",
    "{% endfor %}",
    "{% nobody_knows %}",
    "line\nline\n{{ 1 + }}",
    "{{ 'a'|nobody_knows }}",
    "{% for m in messages %}{{ m|nobody_knows }}{% endfor %}",
    "{{ 1 is nobody_knows }}",
    "{% set 1 = 2 %}",
    "{{ 'a }}",
]


def compiles(template: str) -> bool:
    try:
        _compile_jinja_template(template)
    except jinja2.TemplateSyntaxError:
        return False
    return True


@pytest.mark.parametrize("template", SOUND)
def test_what_compiles_is_sound(template):
    """Also what only fails once a branch is taken."""
    assert compiles(template)
    assert fault_of(template) is None


@pytest.mark.parametrize("template", BROKEN)
def test_what_does_not_compile_has_a_fault(template):
    """With the line it is in."""
    assert not compiles(template)
    fault = fault_of(template)
    assert fault is not None
    assert f"in line {template.count(chr(10)) + 1}" in fault


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9**9**9**9 }}",
        "{{ 'a'|center(10**15) }}",
        "{{ 'a' * 10**15 }}",
        "{{ 10**15 // 7|abs }}",
    ],
)
def test_nothing_is_calculated(template):
    """What compiling would never come back from, or not in this memory."""
    assert fault_of(template) is None


@pytest.mark.parametrize(
    "template", ["{{ " + "(" * 9_000, "{{ " + "9" * 9_000 + " }}", "{%" * MAX_CHARS]
)
def test_what_cannot_be_read_within_bounds_is_left_to_the_worker(template):
    """It has limits of time and memory for it."""
    assert fault_of(template) is None
