"""The changelog and the version say the same."""

import re
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_newest_version_with_a_date_is_the_project_s_and_what_is_unreleased_stands_above_it() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", heading) for heading in headings[1:]]
    assert all(released), headings
    assert next(match[1] for match in released if match) == version
    days = [date.fromisoformat(match[2]) for match in released if match]
    assert days == sorted(days, reverse=True)
