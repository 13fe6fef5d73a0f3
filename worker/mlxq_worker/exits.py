"""How a worker process says, by its exit code, what whoever looks after it should do next.

The numbers are those of BSD's sysexits, so that logs of systemd and launchd read well. Any other code, and any signal,
is a death: the process is started again after a pause.
"""

from __future__ import annotations

import os

DONE = 0
"""It was asked to end, or a burst is over."""
USAGE = 2
"""click's: an option is wrong."""
NO_REDIS = os.EX_UNAVAILABLE
"""Redis can't be reached: worth another try only if it could be before."""
NO_LOGIN = os.EX_NOPERM
"""Redis refuses the user or the password, or a right: the same, since those are changed."""
NO_RIGHTS = os.EX_NOUSER
"""Redis refuses a right, and has done so since the process began: its user may be another one than a worker's."""
STUCK = os.EX_SOFTWARE
"""No token came for too long."""
START_AGAIN = os.EX_TEMPFAIL
"""It has done what it was to do in one life; a fresh process goes on at once."""
GAVE_UP = os.EX_CONFIG
"""It can't work, and has said why: trying again would change nothing."""

WAITS = frozenset({NO_REDIS, NO_LOGIN, NO_RIGHTS})
"""Not the worker's own fault."""
IN_PEACE = frozenset({DONE, START_AGAIN, *WAITS})
"""It has given back what it held, or would have, if Redis had taken it: no death."""
