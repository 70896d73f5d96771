"""What the suites in Python share: deadlines and the report of each check."""

import os
import queue
import sys
import traceback

HOST = "127.0.0.1"
PORT = int(sys.argv[1])

# Nothing on a loopback takes this long; it only bounds the wait for what never comes.
SECONDS = 20
LARGE_SECONDS = 60
LARGE = 64 << 20


def take(events, what, seconds=SECONDS):
    """The next event from a queue, or an error that names what was waited for."""
    try:
        return events.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no {what} within {seconds} s") from None


def expect(what, found, expected):
    if found != expected:
        raise AssertionError(f"{what}: {found!r:.200} instead of {expected!r:.200}")


def run(checks):
    """Runs the functions by their names, reports each, and ends the program."""
    failed = 0
    for name, check in checks.items():
        try:
            check()
            print(f"ok {name}", flush=True)
        except Exception as error:
            failed += 1
            traceback.print_exc()
            print(f"FAIL {name}: {' '.join(str(error).split())}", flush=True)
    # Not sys.exit: a client's thread that hangs must not keep the program.
    sys.stdout.flush()
    os._exit(1 if failed else 0)
