"""What is kept of the code that differs from the commit, and what never is."""

import subprocess
from pathlib import Path

from infra.source_code import source_state

SECRETS = ("stagedw0rd", "AKIAIOSFODNN7EXAMPLE", "MIIEow0rd", "pemw0rd", "me:w0rd@", "untrackedw0rd")


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, check=True)


def test_of_what_is_not_committed_no_secret_is_kept_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    git(tmp_path, "init")
    folder = tmp_path / "sub folder"
    folder.mkdir()
    for name in ("model.py", "access.py", "key.py", "tracked.pem", "address.py", "moved.py"):
        (folder / name).write_text("layers = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    assert source_state(folder).diff == ""

    (folder / "model.py").write_text("layers = 2\n")
    (folder / "access.py").write_text('layers = 1\nkey = "AKIAIOSFODNN7EXAMPLE"\n')
    (folder / "key.py").write_text('KEY = """\n-----BEGIN RSA PRIVATE KEY-----\nMIIEow0rd\n"""\n')
    (folder / "tracked.pem").write_text("pemw0rd\n")
    (folder / "address.py").write_text('uri = "http://me:w0rd@host"\n')
    (folder / "new.txt").write_text("stagedw0rd\n")
    (folder / ".env").write_text("PASSWORD=stagedw0rd\n")
    git(tmp_path, "mv", "sub folder/moved.py", "sub folder/elsewhere.py")
    git(tmp_path, "add", ".")
    (folder / "untracked.txt").write_text("untrackedw0rd\n")

    found = source_state(folder)
    assert found.dirty
    assert "-layers = 1\n+layers = 2\n" in found.diff
    for secret in SECRETS:
        assert secret not in found.diff
    for line in (
        '# untracked, not kept: "sub folder/untracked.txt"',
        "# new, not kept: sub folder/.env",
        "# new, not kept: sub folder/new.txt",
        "# new, not kept: sub folder/elsewhere.py",
        "# left out, for a line in its diff looks like a secret (AWS Access Key): sub folder/access.py",
        "# left out, for a line in its diff looks like a secret (Private Key): sub folder/key.py",
        "# left out, for a line in its diff looks like a secret (Basic Auth Credentials): sub folder/address.py",
        "# left out, for a file of that name may hold a secret: sub folder/tracked.pem",
    ):
        assert line in found.diff.splitlines()
