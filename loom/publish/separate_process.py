"""Work in a copy of this process, which leaves nothing behind."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from loom.errors import INTERRUPTED

__all__ = ["run_apart"]


def run_apart(work: Callable[[], int]) -> int:
    """Run a function in a copy of this process, with all that was imported; return its status.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the copy has ended too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            status = work()
        except KeyboardInterrupt:
            status = INTERRUPTED
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    try:
        _, ended = os.waitpid(child, 0)
    except KeyboardInterrupt:
        # From a terminal it heard of Ctrl-C itself; twice does no harm.
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(ended)
