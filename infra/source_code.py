"""Which code is running: the git commit, and what differs from it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SourceState:
    """The checkout that a run was started from."""

    commit: str
    """40 hexadecimal digits, or `unknown` outside a git checkout."""
    dirty: bool
    """True if tracked files differ from the commit, or untracked ones lie beside them."""
    diff: str
    """What differs, as `git diff` writes it; untracked files by name only, for they may hold secrets."""


def source_state(folder: Path) -> SourceState:
    """The state of the git checkout that `folder` lies in."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD").strip()
    if not commit:
        return SourceState("unknown", False, "")
    status = _git(folder, "status", "--porcelain")
    untracked = "".join(f"# untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??"))
    diff = _git(folder, "diff", "--no-color", "--no-ext-diff", "HEAD") if status else ""
    return SourceState(commit, bool(status), untracked + diff)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
