"""Foreign text is shown, never obeyed: by terminals, by log readers."""

from __future__ import annotations

import logging

import pytest

from mlxq.printable import OurLines, log_printably, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("half \ud83d", r"half \ud83d"),
        ("\U000e0041", r"\U000e0041"),
        (b"\xff\x00", r"\xff\x00"),
        ("naïve 日本語\u3000👩\u200d💻 עברית", "naïve 日本語\u3000👩\u200d💻 עברית"),
        (ValueError("a\nb"), r"a\nb"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped_and_nothing_else(text: object, shown: str) -> None:
    assert printable(text) == shown
    shown.encode()


def test_lines_stay_lines_where_they_may() -> None:
    assert printable_lines("a\n\tb\x1b") == "a\n\tb\\x1b"


def test_a_logger_forges_no_lines_and_sends_no_escape_sequences(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("a logger of this test")
    log_printably(logger.name)
    log_printably(logger.name)

    logger.warning("job %s has %d rows\nand %s", "x\n12:00 all is well\x1b[2J", 3, OurLines("File a\n  line 1\x07"))
    logger.warning("by name: %(name)s", {"name": "a\rb"})

    assert [record.getMessage() for record in caplog.records] == [
        "job x\\n12:00 all is well\\x1b[2J has 3 rows\nand File a\n  line 1\\x07",
        "by name: a\\rb",
    ]
