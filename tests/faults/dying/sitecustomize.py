"""Python loads this in every process whose PYTHONPATH has this folder: the process kills itself at a chosen write.

HUSAI_DEATH holds who dies (driver or kernel), at which write to HUSAI_DEATH_BELOW, how many seconds after it began, and
a file in which the write is noted. A write begins where a file is opened for it and ends where it is renamed.
"""

import contextlib
import os
import signal
import sys
import threading
import time

WHO, AT, AFTER, NOTE = os.environ["HUSAI_DEATH"].split(" ", 3)
BELOW = tuple(os.environ["HUSAI_DEATH_BELOW"].split(":"))
writes = 0


def die(what: str) -> None:
    time.sleep(float(AFTER))
    with contextlib.suppress(OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def heard(event: str, arguments: tuple[object, ...]) -> None:
    """Count the writes of this process and die at the chosen one."""
    global writes  # noqa: PLW0603 - an audit hook has nowhere else to count
    if event == "os.rename":
        path = os.fspath(arguments[1])  # type: ignore[arg-type]
    elif event == "open" and isinstance(arguments[0], str) and int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):  # type: ignore[call-overload]
        path = arguments[0]
    else:
        return
    if not str(path).startswith(BELOW):
        return
    writes += 1
    if writes == int(AT):
        with open(NOTE, "w") as note:  # noqa: PTH123 - os only, as early as this runs
            note.write(f"{event} {path}")
        if float(AFTER):
            threading.Thread(target=die, args=(event,), daemon=True).start()
        else:
            die(event)


is_kernel = any("ipykernel_launcher" in word for word in sys.orig_argv)
if is_kernel == (WHO == "kernel"):
    sys.addaudithook(heard)
