"""Small wheels that a test writes itself, and how uv is told to take packages from nowhere else."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


class Wheels:
    """A folder of wheels: the only package index that uv, and pip, then know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "wheels"
        self.folder.mkdir()
        self.environment = {
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": str(self.folder),
            "UV_CACHE_DIR": str(folder / "uv-cache"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder),
        }

    def add(self, name: str, version: str, requires: Sequence[str] = (), more: Mapping[str, str] | None = None) -> Path:
        """A wheel with a module of the package's name, whose `VERSION` it is, a script that prints it, and more."""
        info = f"{name}-{version}.dist-info"
        path = self.folder / f"{name}-{version}-py3-none-any.whl"
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        files = {
            f"{name}.py": f"VERSION = {version!r}\ndef main():\n    print(VERSION)\n",
            **(more or {}),
            f"{info}/METADATA": "\n".join([*metadata, *(f"Requires-Dist: {one}" for one in requires)]) + "\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[console_scripts]\n{name}-version = {name}:main\n",
        }
        record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(path, "w") as wheel:
            for file, content in {**files, f"{info}/RECORD": record}.items():
                wheel.writestr(file, content)
        return path
