"""The two keys of the service, of which either lets a client in: one is changed while the other is in use."""

import json
import secrets
from pathlib import Path

from infra.errors import SettingsError
from infra.private_file import write_private


class Keys:
    """Kept in a folder of mode 0700, in files of mode 0600; read again when they have changed."""

    def __init__(self, folder: Path) -> None:
        """Makes folder and keys if there are none."""
        self.file = folder / "keys.json"
        self.header = folder / "authorization.header"
        """A line for `curl -H @FILE`, which keeps the key out of the list of processes."""
        self._read_at: int | None = None
        self._both: tuple[bytes, ...] = ()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not self.file.exists():
            self._write(secrets.token_urlsafe(30), secrets.token_urlsafe(30))

    def __call__(self) -> tuple[bytes, ...]:
        """Those that are valid now. Raises `SettingsError` if the file is not as it was made."""
        changed = self.file.stat().st_mtime_ns
        if changed != self._read_at:
            try:
                kept = json.loads(self.file.read_text())
                self._both = tuple(str(kept[name]).encode() for name in ("primary", "secondary"))
            except (ValueError, LookupError, TypeError) as error:
                raise SettingsError(f"{self.file} does not hold the keys primary and secondary.\nRemove it.") from error
            self._read_at = changed
        return self._both

    def rotate(self) -> None:
        """A new primary key; the one before is the secondary now, and the secondary lets nobody in any more."""
        self._write(secrets.token_urlsafe(30), self()[0].decode())

    def _write(self, primary: str, secondary: str) -> None:
        write_private(self.header, f"Authorization: Bearer {primary}\n")
        write_private(self.file, json.dumps({"primary": primary, "secondary": secondary}, indent=1) + "\n")
