"""gpt-oss: an answer is messages in channels, and a call is a message to a function.

After OpenAI's description of the harmony format: analysis is the reasoning, final the answer, and commentary without a
recipient is said to the user. openai-harmony parses the same from its own tokenizer's ids alone; here any tokenizer
with these special tokens will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlxq_worker.dialects.calls import Call, CallSyntax, Found, Offered
from mlxq_worker.dialects.dialect import Dialect, Sign, as_json
from mlxq_worker.dialects.forcing import ForcedSyntax
from mlxq_worker.dialects.json_calls import as_object, value_at

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CALL, CONSTRAIN = "<|call|>", "<|constrain|>"

_HEADER = re.compile(
    r"(?:<\|start\|>)?(?P<role>[^<]*?)(?:<\|channel\|>(?P<channel>\w+)(?P<more>[^<]*))?"
    r"(?:<\|constrain\|>(?P<constrain>[^<]*))?<\|message\|>"
)
_BEGIN = re.compile(r"<\|(?:start|channel)\|>")
_RECIPIENT = re.compile(r"to=(\S+)")
_END = re.compile(
    r"<\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>)|(?=<\|channel\|>\w+[^<]*(?:<\|constrain\|>|<\|message\|>))"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an answer. `end` is the index behind it in the answer."""

    channel: str
    recipient: str | None
    text: str
    start: int
    end: int


def messages(text: str) -> Iterator[Message]:
    """The messages of an answer; what stands outside of any is a final one."""
    position = 0
    while position < len(text):
        message = message_at(text, position)
        if message is None:
            end = _next_message(text, position + 1)
            message = Message("final", None, text[position:end], position, end)
        if message.text.strip() or message.recipient:
            yield message
        position = message.end


def message_at(text: str, position: int) -> Message | None:
    """The message whose header begins at an index."""
    match = _HEADER.match(text, position)
    if match is None:
        return None
    closed = _END.search(text, match.end())
    end, after = (closed.start(), closed.end()) if closed else (len(text), len(text))
    recipient = _RECIPIENT.search(f"{match['role']} {match['more'] or ''}")
    channel = match["channel"] or ("commentary" if recipient else "final")
    return Message(channel, recipient[1] if recipient else None, text[match.end() : end], position, after)


def _next_message(text: str, position: int) -> int:
    """The index of the next header, or the end."""
    starts = (match.start() for match in _BEGIN.finditer(text, position))
    return next((start for start in starts if _HEADER.match(text, start)), len(text))


def _read(text: str, position: int, offered: Offered) -> Found | None:
    message = message_at(text, position)
    call = None if message is None else call_of(message, offered)
    return Found((call,), message.end) if message and call else None


def call_of(message: Message, offered: Offered) -> Call | None:
    """The call that a message is, if it is addressed to an offered tool and holds an object."""
    if message.recipient is None:
        return None
    decoded = value_at(message.text, 0)
    if decoded is None or message.text[decoded[1] :].strip():
        return None
    return offered.call(message.recipient, as_object(decoded[0]))


def _write(calls: Sequence[Call]) -> str:
    return "".join(
        f"{CHANNEL}commentary to=functions.{call.name} {CONSTRAIN}json{MESSAGE}{as_json(call.arguments)}{CALL}"
        for call in calls
    )


HARMONY = Dialect(
    name="openai",
    aliases=("gpt-oss", "gpt_oss", "harmony"),
    spoken_by="gpt-oss",
    signs=(Sign(template=(CHANNEL, MESSAGE, "functions")), Sign(tokens=(CHANNEL, MESSAGE, CALL))),
    syntax=CallSyntax(
        opener=re.compile(r"(?:<\|start\|>assistant)?(?:\s*to=[^<]*)?<\|channel\|>"), read=_read, marker=""
    ),
    forced=ForcedSyntax(
        before=f"{CHANNEL}commentary to=functions.{{name}} {CONSTRAIN}json{MESSAGE}",
        after="",
    ),
    writes=_write,
    is_channelled=True,
)
