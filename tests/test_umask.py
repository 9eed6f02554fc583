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
    )
    home = tmp_path / "home"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PIPELINE_HOME": str(home)}, umask=0, check=True)
    made = [home, *home.rglob("*")]
    assert len(made) > 5
    assert [path for path in made if path.stat().st_mode & 0o022] == []
