"""Imported last into the process that the others are forked from: what it holds stays shared with them.

Garbage collection writes into every object it looks at, and what is written to is copied.
"""

import signal

from service.cli.draining import leave_alone

leave_alone()
for each in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, signal.SIG_IGN)  # a whole group may be told to stop: the parent sees to it
