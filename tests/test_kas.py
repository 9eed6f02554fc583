"""`kas`: the words, and a program that lies elsewhere."""

import subprocess
import sys
from pathlib import Path

from flows.__main__ import WORDS, overview, spoken

KAS = (sys.executable, "-P", "-m", "flows")


def kas(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KAS, *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_it_lists_its_words_each_with_what_it_does(tmp_path: Path) -> None:
    told = kas(cwd=tmp_path)
    assert told.returncode == 0
    assert told.stdout == overview()
    for word in WORDS:
        (line,) = (line for line in told.stdout.splitlines() if line.split()[:1] == [spoken(word)])
        assert len(line.split()) > 3, "a word and what it does"


def test_a_word_that_it_does_not_have_is_refused_with_the_nearest(tmp_path: Path) -> None:
    told = kas("trian", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert "Did you mean train?" in told.stderr


def test_a_word_is_its_module_with_the_flags_behind_it_and_paths_of_the_folder_that_one_is_in(tmp_path: Path) -> None:
    told = kas("train", "--program", "mine", cwd=tmp_path)
    assert told.returncode == 2
    assert f"The program {tmp_path / 'mine'} is not there" in told.stderr
