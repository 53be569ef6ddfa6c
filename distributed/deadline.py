"""A deadline for a call that holds Python's lock, such as MLX's wait for its peers.

While `mx.distributed.init` waits no other Python thread and no Python signal handler runs, so a thread cannot
keep the time. A small helper process can: it watches a pipe that closes when the call returns or we die, and
otherwise prints the reason and interrupts us. For that while SIGINT runs the C library's `_exit`, which gets
the signal's number as its exit code: 2, the one for what a person can fix. To change what is printed, see the
caller.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

WATCH = """
import os, select, signal, sys
if not select.select([sys.stdin], [], [], float(sys.argv[2]))[0]:
    sys.stderr.write(f"error: {sys.argv[3]}\\n")
    sys.stderr.flush()
    os.kill(int(sys.argv[1]), signal.SIGINT)
"""


@contextlib.contextmanager
def exit_after(seconds: float, message: str) -> Iterator[None]:
    """End this process with code 2 and an `error:` line unless the block is left within `seconds`.

    Only in the main thread, where signals are handled. Ctrl-C inside the block ends the process too.
    """
    assert threading.current_thread() is threading.main_thread()
    command = [sys.executable, "-I", "-S", "-c", WATCH, str(os.getpid()), str(seconds), message]
    previous = signal.getsignal(signal.SIGINT)
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE)
    exit_on_interrupt()
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)


def exit_on_interrupt() -> None:
    """Make SIGINT call the C library's `_exit(SIGINT)` directly, without Python."""
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGINT), ctypes.cast(library._exit, ctypes.c_void_p))
