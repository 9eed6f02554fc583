"""What a person reads of the stack: each line with the name of the part that wrote it, and which part keeps dying.

supervisor's event listener.
"""

import re
import sys
import time
from collections import defaultdict, deque
from pathlib import Path

from supervisor import childutils

# rclone's S3 server removes the folder of a file that it removed, and calls it an error that others are in it. Where
# a folder is asked to be removed with its files, as one among its keys, it fails at the folder for a moment.
NOISE = re.compile(r"ERROR : .*(: Dir\.Remove not empty|delete object failed: Directory not empty)$")

LAST_LINES = 8
"""Of a part that keeps dying."""

SHORT_SECONDS = 60
"""A part that ends twice within so long keeps dying."""


def label_lines(logs: Path) -> None:
    """Write what parts write to stderr, but for `NOISE`, until supervisor ends; stdout speaks its protocol."""
    # supervisor counts characters, and a translated end of line would be one too few.
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    unfinished: dict[str, str] = {}
    last: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_LINES))
    ends: dict[str, list[float]] = defaultdict(list)
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        if headers["eventname"].startswith("PROCESS_LOG"):
            described, text = childutils.eventdata(payload)
            name = described["processname"]
            *lines, unfinished[name] = (unfinished.get(name, "") + text).split("\n")
            lines = [line for line in lines if not NOISE.search(line)]
            last[name].extend(lines)
            say(name, lines)
        else:
            described = childutils.get_headers(payload)
            name = described["processname"]
            if described.get("expected") != "1":
                ends[name].append(time.monotonic())
                given_up = headers["eventname"] == "PROCESS_STATE_FATAL"
                say("stack", told(name, ends[name], given_up, last[name], logs))
        childutils.listener.ok(sys.stdout)


def say(name: str, lines: list[str]) -> None:
    """Write lines under the name of a part."""
    sys.stderr.write("".join(f"{name:<10}| {line}\n" for line in lines))
    sys.stderr.flush()


def told(name: str, ends: list[float], given_up: bool, last: deque[str], logs: Path) -> list[str]:
    """What is to be said of a part that has ended again: of the 2nd, 4th, 8th ... time in a row, and of the last."""
    if len(ends) > 1 and ends[-1] - ends[-2] > SHORT_SECONDS:
        del ends[:-1]
    count = len(ends)
    if given_up:
        head = f"{name} is given up, for it cannot be started. Start the stack again once it can."
    elif count > 1 and count & (count - 1) == 0:
        head = f"{name} has ended {count} times in {ends[-1] - ends[0]:.0f} s, and is started again."
    else:
        return []
    return [f"{head} Its last lines, of {logs / name}.log:", *(f"    {line}" for line in last)]
