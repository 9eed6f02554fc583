"""One log of all parts: each line with the name of the part that wrote it. supervisor's event listener."""

import re
import sys

from supervisor import childutils

# rclone's S3 server removes the folder of a file that it removed, and calls it an error that others are in it.
NOISE = re.compile(r"ERROR : .*: Dir\.Remove not empty$")


def label_lines() -> None:
    """Write what parts write to stderr, but for `NOISE`, until supervisor ends; stdout speaks its protocol."""
    # supervisor counts characters, and a translated end of line would be one too few.
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    unfinished: dict[str, str] = {}
    while True:
        _, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        described, text = childutils.eventdata(payload)
        name = described["processname"]
        *lines, unfinished[name] = (unfinished.get(name, "") + text).split("\n")
        if lines := [line for line in lines if not NOISE.search(line)]:
            sys.stderr.write("".join(f"{name:<10}| {line}\n" for line in lines))
            sys.stderr.flush()
        childutils.listener.ok(sys.stdout)
