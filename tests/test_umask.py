"""Whatever the umask of who starts it, nothing that the pipeline makes can be changed by others."""

import os
import subprocess
import sys
from pathlib import Path

from tests.pipeline import ROOT


def test_nothing_in_the_home_is_writable_for_others(tmp_path: Path) -> None:
    code = (
        "from infra.settings import load_settings\n"
        "from infra.scratch import make_folder\n"
        "from infra.object_store import ObjectStore\n"
        "settings = load_settings()\n"
        "(make_folder(settings.scratch_folder) / 'file').touch()\n"
        "ObjectStore(settings.object_store_uri).put_bytes('a/b', b'1')\n"
        # Now, for its working folders go with the process.
        "for path in (settings.home, *settings.home.rglob('*')):\n"
        "    print(path.stat().st_mode, path)\n"
    )
    home = tmp_path / "home"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PIPELINE_HOME": str(home)}
    made = subprocess.run(command, cwd=ROOT, env=environment, umask=0, check=True, capture_output=True, text=True)
    modes = {path: int(mode) for mode, _, path in (line.partition(" ") for line in made.stdout.splitlines())}
    assert len(modes) > 6
    assert [path for path, mode in modes.items() if mode & 0o022] == []
