"""Which files of a person's folder are the program: what is shipped, hashed, and kept with its runs."""

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from pathspec import GitIgnoreSpec

from infra.compute import NOT_OF_A_PROGRAM
from infra.errors import ArgumentError
from tasks.saved_model import MODEL_FILES

MOST_FILES = 2_000
MOST_BYTES = 50_000_000

_RESULTS = ("outputs", "mlruns", "mlartifacts", "mlflow.db")
"""What a program, or MLflow, writes into its working directory."""

_NOT_TOLD = (".git", ".gitignore", ".programignore", "__pycache__", "*.py[co]", ".DS_Store")
"""Of no use to any program: nobody asks where they are."""

_COUNTED_UP_TO = 20_000


@dataclass(frozen=True)
class ProgramFiles:
    """The files of a folder."""

    files: tuple[Path, ...]
    """Those that are the program, in a fixed order."""
    left_out: tuple[tuple[str, str], ...]
    """The others, relative to the folder and with the reason; a whole folder is one of them, with a `/` at its end."""


def read_files(folder: Path) -> ProgramFiles:
    """The files of the program in `folder`, which must be an absolute path without links.

    What `.gitignore` and `.programignore` name is left out, in any folder as git does it; `.programignore` has the last
    word, so `!weights.h5` in it brings a file back that git ignores. So are results, environments, and what has a name
    of `NOT_OF_A_PROGRAM`, which nothing brings back. A link is followed as long as it stays in the folder.

    Raises `ArgumentError` for a link that does not, and for more files than a program has.
    """
    walk = _Walk(folder)
    walk.visit(folder, (), (folder,))
    walk.refuse_too_much()
    return ProgramFiles(tuple(sorted(walk.files)), tuple(sorted(walk.left_out)))


@dataclass
class _Walk:
    folder: Path
    files: dict[Path, int] = field(default_factory=dict)
    """Sizes in bytes."""
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def visit(self, folder: Path, rules: tuple["_Rules", ...], chain: tuple[Path, ...]) -> None:
        """Go through `folder`; `rules` are those of the folders above it, `chain` where these and it really are."""
        here = folder.relative_to(self.folder).as_posix()
        prefix = "" if here == "." else f"{here}/"
        rules = (*_read_rules(folder, prefix), *rules)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ArgumentError(f"The folder {folder} of the program cannot be read: {error}") from error
        for entry in entries:
            name = prefix + entry.name
            if why := self._why_not(entry, name, rules):
                if not any(fnmatchcase(entry.name, pattern) for pattern in _NOT_TOLD):
                    self.left_out.append((f"{name}/" if entry.is_dir() else name, why))
                continue
            if entry.is_symlink():
                self._refuse_way_out(Path(entry.path), name, chain)
            if entry.is_dir():
                self.visit(Path(entry.path), rules, (*chain, Path(entry.path).resolve()))
            elif entry.is_file():
                self._add(entry, name)
            else:
                self.left_out.append((name, "it is no regular file"))

    def _why_not(self, entry: os.DirEntry[str], name: str, rules: tuple["_Rules", ...]) -> str:
        """Why this is not of the program; empty if it is."""
        for pattern in NOT_OF_A_PROGRAM:
            if fnmatchcase(entry.name, pattern):
                return "its name begins with a dot" if pattern == ".*" else f"its name is one of {pattern}"
        if "/" not in name and entry.name in _RESULTS:
            return "it holds results of runs"
        if entry.is_dir():
            if any(Path(entry.path, mark).exists() for mark in ("pyvenv.cfg", "conda-meta")):
                return "it is a Python environment"
            if Path(entry.path, MODEL_FILES).exists():
                # Where one works in the program's folder, ./model is in it: the next run would find another program.
                return "it is a model that a run delivered"
            name += "/"
        for rule in rules:
            if (decided := rule.decide(name)) is not None:
                return f"{rule.file} names it" if decided else ""
        return ""

    def _refuse_way_out(self, link: Path, name: str, chain: tuple[Path, ...]) -> None:
        target = link.resolve()
        if not target.is_relative_to(self.folder):
            raise ArgumentError(
                f"{name} in the program's folder {self.folder} is a link to {target}, which lies outside it.\n"
                "Put the file itself there; if it is data, give it with --data; or name the link in .programignore."
            )
        if not target.exists():
            raise ArgumentError(
                f"{name} in the program's folder {self.folder} is a link to {target}, which is not there.\n"
                "Remove the link, or name it in .programignore."
            )
        if target in chain:
            raise ArgumentError(
                f"{name} in the program's folder {self.folder} is a link to a folder that it lies in, without an end.\n"
                "Remove the link, or name it in .programignore."
            )

    def _add(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ArgumentError(f"A file of the program has a name that is no text: {name!r}. Rename it.") from None
        self.files[Path(entry.path)] = entry.stat().st_size
        if len(self.files) >= _COUNTED_UP_TO:
            self.refuse_too_much()

    def refuse_too_much(self) -> None:
        size = sum(self.files.values())
        if len(self.files) <= MOST_FILES and size <= MOST_BYTES:
            return
        more = " or more" if len(self.files) >= _COUNTED_UP_TO else ""
        raise ArgumentError(
            f"The program's folder {self.folder} has {len(self.files):,}{more} files of {_megabytes(size)}; "
            f"at most {MOST_FILES:,} files of {_megabytes(MOST_BYTES)} are shipped.\n"
            f"The largest: {self._largest()}.\n"
            "Keep data elsewhere and give it with --data; name in .programignore what the program does not need."
        )

    def _largest(self) -> str:
        """The largest files by size, or where there are too many of them the folders that hold most."""
        if sum(self.files.values()) > MOST_BYTES:
            largest = sorted(self.files.items(), key=lambda file: -file[1])[:5]
            return ", ".join(f"{path.relative_to(self.folder)} ({_megabytes(size)})" for path, size in largest)
        counts: dict[str, int] = {}
        for path in self.files:
            parts = path.relative_to(self.folder).parts
            counts[parts[0] + "/" if len(parts) > 1 else "."] = (
                counts.get(parts[0] + "/" if len(parts) > 1 else ".", 0) + 1
            )
        most = sorted(counts.items(), key=lambda folder: -folder[1])[:5]
        return ", ".join(f"{folder} ({count:,} files)" for folder, count in most)


@dataclass(frozen=True)
class _Rules:
    """One file of patterns."""

    file: str
    prefix: str
    """The folder it lies in, relative to the program's, with a `/`; empty for that itself."""
    patterns: GitIgnoreSpec

    def decide(self, name: str) -> bool | None:
        """True if the file is to be left out, False if it is to stay, None if nothing is said of it."""
        return self.patterns.check_file(name.removeprefix(self.prefix)).include


def _read_rules(folder: Path, prefix: str) -> list[_Rules]:
    """The rules that lie in a folder, the one with the last word first."""
    rules = []
    for name in (".programignore", ".gitignore"):
        path = folder / name
        if path.is_file():
            try:
                lines = path.read_bytes().decode(errors="surrogateescape").removeprefix("\ufeff").splitlines()
                rules.append(_Rules(prefix + name, prefix, GitIgnoreSpec.from_lines(lines)))
            except (OSError, ValueError) as error:
                raise ArgumentError(f"{path} cannot be read: {error}") from error
    return rules


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size:,} bytes"
