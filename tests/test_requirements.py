"""What a program requires: compared with what is here, and resolved by the real uv from a folder of wheels."""

from importlib.metadata import version
from pathlib import Path

import pytest

from infra.errors import ProgramInvalid, SettingsError
from infra.requirements import OWN_PYTHON, met, resolve
from infra.settings import set_variables
from tests.wheels import Wheels


def test_what_is_here_is_met_and_the_rest_is_named_with_what_is_here() -> None:
    keras = version("keras")
    here = ["keras", f"Keras=={keras}", "numpy>=2,<3", "no-such-package; sys_platform == 'win32'", "s3fs ; extra == ''"]
    assert met(here) == []
    assert met([], OWN_PYTHON) == met([], f"{OWN_PYTHON}.99") == []
    assert met(["keras==2.1", "no-such-package>=3", "keras @ https://example.org/keras.whl"], "3.8.1") == [
        f"Python 3.8 ({OWN_PYTHON} is here)",
        f"keras==2.1 ({keras} is here)",
        "no-such-package>=3 (not here)",
        f"keras @ https://example.org/keras.whl (from another place than {keras}, which is here)",
    ]
    # The development packages hold neither psycopg's pool nor what passlib's extra needs.
    assert met(["fsspec[s3,http]"]) == []
    assert any(one.startswith("paramiko") and "not here" in one for one in met(["fsspec[sftp]"]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("keras=3.15", "'keras=3.15' among the program's requirements is no package"),
        ("-r other.txt", "Options do not belong into the list"),
        ("./mine.whl", "is no package"),
        ("mine @ file:///tmp/mine.whl", "lies on this machine alone"),
    ],
)
def test_what_is_no_package_is_refused_by_name(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramInvalid, match=said):
        met([line])
    with pytest.raises(ProgramInvalid, match=said):
        resolve([line], None, tmp_path)
    with pytest.raises(ProgramInvalid, match=r"asks for Python '>=3'"):
        resolve([], ">=3", tmp_path)


def test_versions_and_hashes_are_resolved_once_and_stay_the_same(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    wheels.add("beta", "1.5")
    wheels.add("alpha", "1.0", ["beta>=1"])
    set_variables(**wheels.environment)
    kept = tmp_path / "kept"
    text = resolve(["alpha", "beta<9"], None, kept)
    names = [line.partition(" ")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert names == ["alpha==1.0", "beta==1.5"]
    assert text.count("--hash=sha256:") == 2
    assert str(tmp_path) not in text
    assert (
        f"python_full_version >= '{OWN_PYTHON}'" in text
        or f"python_full_version == '{OWN_PYTHON}.*'" in text
        or ("sys_platform == 'linux'" in text)
    )
    wheels.add("beta", "1.6")
    assert resolve(["beta<9", "alpha", "alpha"], OWN_PYTHON, kept) == text
    assert "beta==1.6" in resolve(["alpha", "beta<10"], None, kept)
    assert [path.suffix for path in kept.iterdir()] == [".txt", ".txt"]


def test_why_there_is_no_answer_is_said_in_a_few_lines(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    wheels.add("beta", "1.5")
    wheels.add("alpha", "1.0", ["beta>=2"])
    set_variables(**wheels.environment)
    for wanted, said in (["no-such-package"], "no-such-package was not found"), (["alpha"], "beta"):
        with pytest.raises(ProgramInvalid, match=said) as refused:
            resolve(wanted, None, tmp_path / "kept")
        assert len(str(refused.value).splitlines()) <= 8
        assert "split (markers" not in str(refused.value)
    hidden = {"UV_NO_INDEX": "0", "UV_INDEX_URL": "http://name:secret@127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    set_variables(**hidden)
    with pytest.raises(SettingsError, match="Connection refused") as unreachable:
        resolve(["beta>=1"], None, tmp_path / "kept")
    assert "secret" not in str(unreachable.value)
    assert list((tmp_path / "kept").iterdir()) == [] if (tmp_path / "kept").exists() else True
