"""Where an error was raised, for logs, which people share: its type and the lines of code, never its message.

The message of an error in a tokenizer, a chat template, a schema or a step may quote the prompt.
"""

from __future__ import annotations

import traceback

from mlxq.printable import OurLines


def trace_of(error: BaseException) -> OurLines:
    """A traceback without any value: ``KeyError`` and the lines that led to it."""
    return OurLines(f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}".rstrip())
