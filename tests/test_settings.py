"""What the environment's addresses are taken for: moved logins, mistyped schemes, folders with any name."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infra.addresses import is_loopback, split_login, without_secrets
from infra.errors import SettingsError, TrackerError
from infra.experiment_tracker import ExperimentTracker
from infra.settings import load_settings, move_logins
from infra.stack.settings import load_stack_settings
from tests.conftest import ROOT

WORD = "pass/w0rd"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://me:{WORD}@host:5000/x", "http://***@host:5000/x"),
        ("http://me:w@rd@host", "http://***@host"),
        (f"s3://KEY:{WORD}+z=@bucket/prefix", "s3://***@bucket/prefix"),
        ("https://host/file?signature=abc&x=1", "https://host/file?***"),
        ("postgresql://me:word@host/mlflow", "postgresql://***@host/mlflow"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("file:///home/a@b", "file:///home/a@b"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_secrets_alone_and_in_a_text(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert without_secrets(f"API request to {address} failed (see x@y)") == f"API request to {shown} failed (see x@y)"
    assert str(TrackerError(f"Could not ask {address}: no.")) == f"Could not ask {shown}: no."


def test_a_login_is_moved_from_an_address_to_where_its_client_looks() -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "https://me:p%40ss@host:5000/mlflow",
        "MLFLOW_TRACKING_PASSWORD": "an older one",
        "OBJECT_STORE_URI": f"s3://KEY:{WORD}@bucket/prefix",
        "PREFECT_API_URL": "http://admin:word@host:4200/api",
    }
    move_logins(environment)
    assert environment == {
        "MLFLOW_TRACKING_URI": "https://host:5000/mlflow",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "p@ss",
        "OBJECT_STORE_URI": "s3://bucket/prefix",
        "AWS_ACCESS_KEY_ID": "KEY",
        "AWS_SECRET_ACCESS_KEY": WORD,
        "PREFECT_API_URL": "http://host:4200/api",
        "PREFECT_API_AUTH_STRING": "admin:word",
    }
    assert split_login("http://host:5000/a@b") == ("http://host:5000/a@b", None)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OBJECT_STORE_URI", f"sftp://me:{WORD}@host/x", r"sftp://\*\*\*@host/x, with a login"),
        ("MLFLOW_TRACKING_URI", f"http://{WORD.replace('/', '')}@host", r"http://\*\*\*@host, with a login"),
        ("MNIST_MIRRORS", f"s3://KEY:{WORD}@bucket/x", r"s3://\*\*\*@bucket/x, which is no mirror"),
    ],
)
def test_a_login_that_cannot_be_moved_is_refused_and_not_shown(variable: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as raised:
        load_settings({variable: value})
    assert "w0rd" not in str(raised.value)


def test_no_secret_is_in_the_settings_representation() -> None:
    settings = load_settings(
        {
            "MLFLOW_TRACKING_URI": "postgresql://me:w0rd@host/mlflow",
            "MNIST_MIRRORS": "https://me:w0rd@host/,https://host/?signature=w0rd",
            "RAY_JOBS_URL": "http://me:w0rd@host",
            "PREFECT_API_URL": "http://me:w0rd@host",
            "OBJECT_STORE_URI": "s3://me:w0rd@bucket",
        }
    )
    assert settings.mlflow_tracking_uri == "postgresql://me:w0rd@host/mlflow", "SQLAlchemy takes it from there alone"
    assert "w0rd" not in repr(settings) + str(settings)
    assert "w0rd" not in repr(load_stack_settings({"STACK_FAILURE_NOTIFICATION_URL": "https://chat/w0rd"}))


@pytest.mark.parametrize(
    ("given", "mirrors"),
    [
        ("/a folder/of mine", ("/a folder/of mine",)),
        ("file:///a b/c,/d e\n https://x/ ", ("file:///a b/c", "/d e", "https://x/")),
        ("https://x/ HTTP://y/ file:///c", ("https://x/", "http://y/", "file:///c")),
        ("", ()),
    ],
)
def test_mirrors_are_separated_by_commas_or_lines_and_by_spaces_before_schemes(
    given: str, mirrors: tuple[str, ...]
) -> None:
    assert load_settings({"MNIST_MIRRORS": given}).dataset_mirrors == mirrors


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("PIPELINE_HOME", "~nosuchuser/x", "PIPELINE_HOME is ~nosuchuser/x"),
        ("PIPELINE_HOME", "/home/what?", r"cannot hold '\?'"),
        ("PIPELINE_HOME", "/home/a#b", "cannot hold '#'"),
        ("PIPELINE_HOME", "/home/a%20b", "cannot hold '%'"),
        ("OBJECT_STORE_URI", "~nosuchuser/x", "OBJECT_STORE_URI is ~nosuchuser/x"),
        ("OBJECT_STORE_URI", "s3:/bucket/x", "Write s3://bucket/x"),
        ("OBJECT_STORE_URI", "file:/x", "Write file:///x"),
        ("OBJECT_STORE_URI", "s3://", "without a bucket"),
        ("OBJECT_STORE_URI", "nosuch://host/x", "nosuch://host/x, .* no protocol"),
        ("MNIST_MIRRORS", "https:/host/x", "Write https://host/x"),
        ("MNIST_MIRRORS", "~nosuchuser/x", "MNIST_MIRRORS is ~nosuchuser/x"),
        ("DATASET_CATALOG", "~nosuchuser/x", "DATASET_CATALOG is ~nosuchuser/x"),
        ("RAY_CLUSTER_FILE", "~nosuchuser/x", "RAY_CLUSTER_FILE is ~nosuchuser/x"),
    ],
)
def test_what_was_mistyped_is_refused_by_name(variable: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings({variable: value})


def test_a_scheme_in_capitals_is_the_scheme() -> None:
    assert load_settings({"OBJECT_STORE_URI": "S3://Bucket/X/"}).object_store_uri == "s3://Bucket/X"
    assert load_settings({"MLFLOW_TRACKING_URI": "HTTP://host"}).mlflow_tracking_uri == "http://host"


def test_a_home_with_spaces_and_umlauts_holds_all_that_is_written(tmp_path: Path) -> None:
    home = tmp_path / "mein Büro & co"
    tracker = ExperimentTracker(load_settings({"PIPELINE_HOME": str(home)}))
    run_id = tracker.start_run("keras-mnist", "run", {})
    tracker.log_text(run_id, "text", "folder/file.txt")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert tracker.read_file(run_id, "folder/file.txt", scratch) == b"text"
    assert {path.name for path in tmp_path.iterdir()} == {home.name, scratch.name}


def test_from_a_folder_that_is_gone_a_relative_address_is_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = """
        import os
        os.rmdir(os.getcwd())
        from infra.errors import SettingsError
        from infra.settings import load_settings
        load_settings()
        try:
            load_settings({"PIPELINE_HOME": "home"})
        except SettingsError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert "the folder that this is relative to is gone" in done.stdout


def test_every_address_of_this_machine_alone_is_loopback() -> None:
    for host in ("localhost", "127.0.0.1", "127.3.2.1", "[::1]", "0.0.0.0", "a.localhost"):
        assert is_loopback(f"http://{host}:5000/x")
    for host in ("host.example", "10.0.0.1", "[fe80::1]", "localhost.example"):
        assert not is_loopback(f"http://{host}:5000/x")
