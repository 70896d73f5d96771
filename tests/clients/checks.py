"""What the suites in Python share: versions, deadlines and the report of each check."""

import functools
import os
import queue
import sys
import time
import traceback

HOST = "127.0.0.1"
PORT = int(sys.argv[1])
# Set by `run --mosquitto`: what follows from decisions of our own is not asked of another broker.
OTHER_BROKER = os.environ.get("OTHER_BROKER") == "1"

V3 = "3.1.1"
V5 = "5.0"

# Nothing on a loopback takes this long; it only bounds the wait for what never comes.
SECONDS = 20
LARGE_SECONDS = 60
LARGE = 64 << 20


class NotOurs(Exception):
    """Ends a check early: the rest of it is for our own broker."""


def ours_only():
    if OTHER_BROKER:
        raise NotOurs


def take(events, what, seconds=SECONDS):
    """The next event from a queue, or an error that names what was waited for."""
    try:
        return events.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no {what} within {seconds} s") from None


def expect(what, found, expected):
    if found != expected:
        raise AssertionError(f"{what}: {found!r:.200} instead of {expected!r:.200}")


def expect_within(what, found, least, most):
    if not least <= found <= most:
        raise AssertionError(f"{what}: {found!r} instead of {least!r} to {most!r}")


def wait_until(moment):
    """For what depends on the time that has passed, and on nothing else."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(left)


def run(both, five):
    """Runs the checks, those for both versions with each of them, reports each by its name, and ends the program."""
    checks = {
        f"{version} {name}": functools.partial(check, version) for version in (V3, V5) for name, check in both.items()
    }
    checks |= {f"{V5} {name}": check for name, check in five.items()}
    failed = 0
    for name, check in checks.items():
        try:
            check()
            print(f"ok {name}", flush=True)
        except NotOurs:
            print(f"part {name}", flush=True)
        except Exception as error:
            failed += 1
            traceback.print_exc()
            print(f"FAIL {name}: {' '.join(str(error).split())}", flush=True)
    # Not sys.exit: a client's thread that hangs must not keep the program.
    sys.stdout.flush()
    os._exit(1 if failed else 0)
