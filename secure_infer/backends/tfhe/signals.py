"""What concrete's runtime changes in the process that calls it, and has to be undone."""

from __future__ import annotations

import ctypes
import signal

_IGNORE = ctypes.c_void_p(1)


def ignore_lost_pipes() -> None:
    """Ignore SIGPIPE where Python does; to be called after a circuit has run, from any thread.

    With its first circuit the runtime installs a handler that aborts the process when it writes to a connection that
    the other side has closed. `signal.signal` would do, but works in the main thread only.
    """
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:
        ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGPIPE), _IGNORE)
