"""Makes foreign text safe to print: control characters and escape sequences are shown, not obeyed.

Job ids, queue names, error messages and answers come from wherever Redis and files got them. A terminal acts on some
characters (it can be made to hide, overwrite or reverse what it shows, and more), and a line break in a log forges a
line. Everything that mlxq prints or logs goes through here. Knows nothing of where it goes to.
"""

from __future__ import annotations

import logging
import re
from typing import Final

_HARMFUL: Final = (
    "\x00-\x1f\x7f-\x9f"  # controls, ESC and the one-character CSI among them
    "\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # unseen ones
    "\ud800-\udfff"  # halves of characters, which can't be encoded
)
_IN_A_LINE = re.compile(f"[{_HARMFUL}]")
_IN_LINES = re.compile(f"(?![\n\t])[{_HARMFUL}]")


def printable(value: object) -> str:
    """A text, or what `str` makes of anything else, on one line: what a terminal would act on stands as ``\\x1b``."""
    return _IN_A_LINE.sub(_escaped, _text(value))


def printable_lines(value: object) -> str:
    """Like `printable`, but line breaks and tabs stay."""
    return _IN_LINES.sub(_escaped, _text(value))


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class PrintableLogs(logging.Filter):
    """Makes what is put into log messages printable. The message itself is ours: its line breaks stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record, and keeps it."""
        if isinstance(record.args, tuple):
            record.args = tuple(_argument(value) for value in record.args)
        elif record.args:
            record.args = {name: _argument(value) for name, value in record.args.items()}
        record.msg = printable_lines(record.msg)
        return True


class OurLines(str):
    """A text of our own making, whose line breaks mean something: log filters leave them."""


def _argument(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    return OurLines(printable_lines(value)) if isinstance(value, OurLines) else printable(value)


_FILTER: Final = PrintableLogs()


def log_printably(*names: str) -> None:
    """Make all messages of these loggers printable: those of others who use them, too."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)  # the same one twice is once
