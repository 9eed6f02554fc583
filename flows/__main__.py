"""`kas`: one command for what a person does, usable from any folder.

kas                    the words
kas WORD --help        what can be told to one; `kas WORD` is `python -m flows.WORD`
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

WORDS = (
    *("train", "train_mnist", "search", "promote", "serve", "predict"),
    *("datasets", "deploy", "doctor", "from_azureml"),
)
"""Modules of this package, each a command."""


def main() -> None:
    """Do what the word says, with the flags behind it, as its module does; exit with its status."""
    given = sys.argv[1:2]
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return
    word = given[0].replace("-", "_")
    if word not in WORDS:
        near = difflib.get_close_matches(word, WORDS, 1)
        meant = f" Did you mean {spoken(near[0])}?" if near else ""
        sys.stderr.write(f"kas: there is no word {given[0]!r}.{meant} It has: {', '.join(map(spoken, WORDS))}.\n")
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"flows.{word}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """Each word with the first line of its module, which is read and not imported: that takes seconds."""
    lines = [f"  {spoken(word):<14}{_first_line(word)}" for word in WORDS]
    return "\n".join(["usage: kas WORD [flags]", "", *lines, "", "kas WORD --help tells the flags of each.", ""])


def spoken(word: str) -> str:
    """A module's name as it is typed."""
    return word.replace("_", "-")


def _first_line(word: str) -> str:
    module = ast.parse((Path(__file__).parent / f"{word}.py").read_text())
    return (ast.get_docstring(module) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
