"""Programs of the system that some tests want, and what is said of those that are not there."""

import os
import shutil
from collections.abc import Iterable

import pytest

PACKAGES = {
    "chromium": "chromium",
    "rsync": "rsync",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}
"""The Debian package of each."""

_CALLED_ALSO = {"chromium": "chromium-browser"}
_LEFT_OUT = "not installed: "


def find_program(name: str) -> str | None:
    """Its path, in the folders of the administrator's programs too; None if it is not there."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    return shutil.which(name, path=path) or shutil.which(_CALLED_ALSO.get(name, name), path=path)


def need(*names: str) -> None:
    """Leave the running test out if one of these programs is not here; where CI is set, it fails."""
    missing = [name for name in names if find_program(name) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(_LEFT_OUT + ", ".join(missing))
    if missing:
        pytest.skip(_LEFT_OUT + ", ".join(missing))


def held_to_modes() -> list[str]:
    """Begins a command that files' modes hold to what they say, started by root as well. It needs setpriv."""
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", "--bounding-set", rights, "--inh-caps", rights] if os.geteuid() == 0 else []


def closing_line(reasons: Iterable[str]) -> str:
    """How many tests `need` left out, for want of what, and what brings it; empty if there are none.

    `reasons` are those of all skipped tests.
    """
    left_out = [reason.partition(_LEFT_OUT)[2].split(", ") for reason in reasons if _LEFT_OUT in reason]
    if not left_out:
        return ""
    missing = sorted({name for names in left_out for name in names})
    packages = sorted({PACKAGES[name] for name in missing})
    tests = f"{len(left_out)} tests were" if len(left_out) > 1 else "1 test was"
    return f"{tests} left out for want of {', '.join(missing)}. To run all: apt-get install -y {' '.join(packages)}"
