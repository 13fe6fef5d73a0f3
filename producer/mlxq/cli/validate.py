"""`--validate-only`: every line of an input that can't be used, and nothing is run.

What only the model can tell, such as whether a prompt fits, isn't looked at.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import NoReturn

from mlxq.cli.options.reading import Reading
from mlxq.cli.report import EMPTY_HINT, counted, print_dropped
from mlxq.cli.terminal import show, tell
from mlxq.files.input import BadLine


def validate(reading: Reading) -> NoReturn:
    """Print the refused lines, one each, to standard output, and end the process: with 1 if there are any."""
    num_good, num_bad, dropped = 0, 0, Counter[str]()
    for line in reading.requests():
        if isinstance(line, BadLine):
            num_bad += 1
            show(f"{line.place}: {line.error.message}")
        else:
            num_good += 1
            dropped.update(line.dropped)
    tell(f"{counted(num_good, 'request')} can be used, {counted(num_bad, 'line')} can not.")
    print_dropped(dropped.most_common())
    if not num_good + num_bad:
        tell(EMPTY_HINT)
    sys.exit(1 if num_bad else 0)
