"""Which code is running: the git commit, and what differs from it."""

import re
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
    """What differs in the files of the commit, as `git diff` writes it, behind comments that name what is left out:
    files that the commit does not have, and those that look as if they held a secret."""


_NAMES_OF_SECRETS = re.compile(
    r"\.env|\.env\..*|.*\.(env|pem|key|p12|pfx|jks|keystore|kdbx|ppk|tfvars|tfstate|netrc|secret)"
    r"|id_(rsa|dsa|ecdsa|ed25519).*|(credentials?|secrets?)([._-].*)?|\.?(netrc|pgpass|htpasswd|pypirc|npmrc)",
    re.IGNORECASE,
)


def source_state(folder: Path) -> SourceState:
    """The state of the git checkout that `folder` lies in."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD").strip()
    if not commit:
        return SourceState("unknown", False, "")
    status = _git(folder, "status", "--porcelain")
    if not status:
        return SourceState(commit, False, "")
    # From the root, for names are relative to it; "no-renames", for a renamed file would count as one of the commit's.
    root = Path(_git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))
    told = [f"# untracked, not kept: {line[3:]}\n" for line in status.splitlines() if line.startswith("??")]
    changes = _git(root, "diff", "--name-status", "--no-renames", "-z", "HEAD").split("\0")
    diffs = []
    for kind, name in zip(changes[::2], changes[1::2], strict=False):
        if kind == "A":
            told.append(f"# new, not kept: {name}\n")
            continue
        diff = _git(root, "diff", "--no-color", "--no-ext-diff", "--no-renames", "HEAD", "--", f":(literal){name}")
        if reason := _why_secret(name, diff):
            told.append(f"# left out, {reason}: {name}\n")
        else:
            diffs.append(diff)
    return SourceState(commit, True, "".join(told + diffs))


def _why_secret(name: str, diff: str) -> str | None:
    if _NAMES_OF_SECRETS.fullmatch(Path(name).name):
        return "for a file of that name may hold a secret"
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.settings import get_plugins, transient_settings

    # No filters: they ask the services whether a key works, and take what looks like an example for harmless.
    classes: dict[str, type] = get_mapping_from_secret_type_to_class()
    kinds = {plugin.__name__ for plugin in classes.values()} - {"IPPublicDetector"}
    with transient_settings({"plugins_used": [{"name": kind} for kind in sorted(kinds)]}):
        plugins = get_plugins()
        # What a line of the old text says is in the commit, and who takes a secret out will not want it kept here.
        for number, line in enumerate(diff.splitlines()):
            if line.startswith(("index ", "--- ", "+++ ", "diff --git ", "@@ ")):
                continue
            for plugin in plugins:
                for found in plugin.analyze_line(filename=name, line=line[1:], line_number=number):
                    return f"for a line in its diff looks like a secret ({found.type})"
    return None


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
