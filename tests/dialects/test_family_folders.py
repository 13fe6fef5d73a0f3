"""A few model folders of every family of tool calls, served by a worker's own load, prepare and answer path: each
answer's text, thought and calls are those that its script means."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.family_folders import NOW, WEATHER, Asked, Family, answers, calls_of, engine_answers, families
from tests.support.scripted_models import Folder, preparer_for, preparer_of, request_of

from mlxq.errors import RequestError
from mlxq_worker.dialects.reasoning import reasoning_markers_of
from mlxq_worker.dialects.tool_format import tool_format_of
from mlxq_worker.messages import Preparer
from mlxq_worker.model.load import DescribedModel, load_tokenizer_only

BY_ENGINE = ("mistral", "qwen3_coder")
"""The engine takes a second for each."""
WITHOUT_HISTORY = {
    family.name: [name for name, folder in family.folders.items() if "m.tool_calls" not in (folder.template or "")]
    for family in families()
}
"""Folders whose templates leave calls out."""
FOLDERS = [(family, name) for family in families() for name in family.folders]
CASES = [(family, name, asked) for family, name in FOLDERS for asked in family.asked(name)]


@dataclass(frozen=True)
class Read:
    """What a worker makes of a folder, weights aside: read once."""

    model: DescribedModel
    preparer: Preparer


Reader = Callable[[Family, str], Read]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    @cache
    def of(family: Family, name: str) -> Read:
        model = load_tokenizer_only(str(family.folders[name].write(tmp_path_factory.mktemp("folder"))))
        return Read(model, preparer_for(model))

    return of


@pytest.fixture(scope="module")
def answered(read: Reader) -> Any:
    """The answers of a folder, made once."""

    @cache
    def of(family: Family, name: str) -> dict[str, dict[str, Any] | RequestError]:
        return answers(read(family, name).preparer, family.folders[name], family.asked(name))

    return of


EACH_ANSWER = pytest.mark.parametrize(
    ("family", "name", "asked"), [pytest.param(*case, id=f"{case[0].name}-{case[1]}-{case[2].name}") for case in CASES]
)
EACH_FOLDER = pytest.mark.parametrize(
    ("family", "name"), [pytest.param(*each, id=f"{each[0].name}-{each[1]}") for each in FOLDERS]
)


def check(choice: dict[str, Any] | RequestError, asked: Asked, family: Family, name: str) -> None:
    assert not isinstance(choice, RequestError), choice
    message, folder = choice["message"], family.folders[name]
    assert calls_of(choice) == asked.calls
    content = re.sub("\n+", "\n", message["content"] or "")  # what stands between two calls is up to their family
    expected = re.sub("\n+", "\n", asked.content)
    for special in folder.special if asked.is_text_alone and not family.is_channelled else ():
        expected = expected.replace(special, "")  # as in any text
    assert (content, message.get("reasoning_content")) == (expected, asked.reasoning)
    assert choice["finish_reason"] == ("tool_calls" if asked.calls else "length" if asked.is_cut else "stop")


@EACH_ANSWER
def test_an_answer_is_what_its_script_means(answered: Any, family: Family, name: str, asked: Asked) -> None:
    check(answered(family, name)[asked.name], asked, family, name)


@pytest.mark.parametrize("family", [each for each in families() if each.name in BY_ENGINE], ids=lambda each: each.name)
def test_an_engines_answers_are_the_same(tmp_path: Path, family: Family) -> None:
    name, folder = list(family.folders.items())[-1]
    asked = family.asked(name)

    said = engine_answers(tmp_path, folder, asked)

    for each in asked:
        check(said[each.name], each, family, name)


@EACH_FOLDER
def test_a_family_is_told_by_its_folder(read: Reader, family: Family, name: str) -> None:
    tokenizer = read(family, name).model.tokenizer

    tool_format, markers = tool_format_of(tokenizer), reasoning_markers_of(tokenizer)

    assert tool_format is not None
    assert tool_format.name == family.dialect
    if family.thought:
        assert markers is not None
        assert (markers.start, markers.end) == family.thought


QUESTION, RESULT = "Is it sunny in Paris?", "mlxqResult"
CALL = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
HISTORY = [
    {"role": "user", "content": QUESTION},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0123456789", "type": "function", "function": CALL}],
    },
    {"role": "tool", "tool_call_id": "call_0123456789", "content": RESULT},
]


@EACH_FOLDER
def test_a_call_of_a_history_is_written_as_models_write_it_or_refused(read: Reader, family: Family, name: str) -> None:
    model, preparer = read(family, name).model, read(family, name).preparer
    request = request_of({"messages": HISTORY, "tools": [WEATHER, NOW]})
    if name in WITHOUT_HISTORY.get(family.name, ()):
        with pytest.raises(RequestError) as refused:
            preparer.prepare(request, "row")
        assert refused.value.param == "messages[1].tool_calls"
        return

    [spec] = preparer.prepare(request, "row")
    text = model.tokenizer.decode(list(spec.prompt_ids))

    written = text.partition(QUESTION)[2].partition(RESULT)[0]
    assert re.search("get_weather.*city.*Paris", written, re.DOTALL), written


TO_SEVERAL = {
    "Kimi K3": (
        '<|open|>tools<|sep|>{% for c in m.tool_calls %}<|open|>call tool="{{ c.function.name }}" index="1"<|sep|>'
        '{% for k, v in c.function.arguments.items() %}<|open|>argument key="{{ k }}" type="string"<|sep|>{{ v }}'
        "<|close|>argument<|sep|>{% endfor %}<|close|>call<|sep|>{% endfor %}<|close|>tools<|sep|>"
    ),
    "Muse": (
        "{% for c in m.tool_calls %}<|start|>assistant to={{ c.function.name }}<|message|><atem:function_calls>\n"
        '<atem:invoke name="{{ c.function.name }}">\n{% for k, v in c.function.arguments.items() %}'
        '<atem:parameter name="{{ k }}">{{ v }}</atem:parameter>\n{% endfor %}</atem:invoke>\n</atem:function_calls>'
        "{% endfor %}"
    ),
    "Functionary 3.2": (
        "{% for c in m.tool_calls %}>>>{{ c.function.name }}\n{{ c.function.arguments | tojson }}{% endfor %}"
    ),
}
"""How models write calls whose answers are messages to several recipients."""


@pytest.mark.parametrize("name", TO_SEVERAL)
def test_tools_are_refused_where_no_dialect_is_known(tmp_path: Path, name: str) -> None:
    template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
        f"{{% if m.tool_calls %}}{TO_SEVERAL[name]}{{% endif %}}<end>{{% endfor %}}"
    )
    preparer = preparer_of(Folder(template=template).write(tmp_path))

    with pytest.raises(RequestError) as refused:
        preparer.prepare(request_of({"messages": HISTORY[:1], "tools": [WEATHER]}), "row")

    assert (refused.value.param, refused.value.code) == ("tools", "unsupported")
