"""Real services for the tests: a Prefect server for the session, a home of its own for each test."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from infra.lock import hold
from infra.settings import environment_unchanged
from tasks.programs.mnist.digits.dataset_files import FILE_NAMES
from tests import reaper, tiers
from tests.http_server import HttpServer, serving
from tests.pipeline import Pipeline
from tests.prefect_server import start_prefect
from tests.small_dataset import write_catalog, write_small_dataset
from tests.stack import Channel, Stack
from tests.system_programs import closing_line, need

ROOT = Path(__file__).parent.parent

# What a developer's own shell may say of services must not reach a test, nor what a test does reach them.
for name in ("PIPELINE_HOME", "OBJECT_STORE_URI", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "DATASET_CATALOG"):
    os.environ.pop(name, None)
os.environ |= {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

if "PYTEST_XDIST_WORKER" not in os.environ:  # A worker is one of the processes that are watched.
    reaper.watch()

# A shell lets what it starts in the background ignore Ctrl-C and Ctrl-\, `nohup` the end of the terminal, and every
# process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)


STACK = ("test_browser.py", "test_deploy_program.py", "test_stack.py")
"""The files whose tests share a stack."""

LONGEST = (
    *STACK,
    "test_ray_cluster.py",
    "test_ray_program.py",
    "test_train_mnist.py",
    "test_ray_launcher.py",
    "test_prefect_lost.py",
    "test_torture.py",
    "test_train.py",
    "test_digits.py",
    "test_register_model.py",
)
"""The files that take minutes, the longest first, so that no worker begins one when the others are done."""


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """A worker takes whole files, for their tests share what they start; one takes all that use the stack."""

    # Not by `--dist loadgroup`: xdist 3.8 writes the groups where pytest 9.2 does not read them.
    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "stack" if file.endswith(STACK) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for tests wait for servers and clusters, but no more than there is work for."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with tiers.kept_to(item.get_closest_marker("slow") is not None):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the stack with the last test that may use it: else its servers would be busy until the last test of all."""
    if item.path.name in STACK and (nextitem is None or nextitem.path.name not in STACK):
        running = getattr(item, "funcargs", {}).get("stack")
        if isinstance(running, Stack):
            running.stop(signal.SIGHUP)


@pytest.hookimpl(tryfirst=True)  # Before the fixtures, which may start what the test then does not use.
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        need(*mark.args)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # Around pytest's own, which writes its summary: the last word.
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # Of xdist's workers as well, for they hand their reports on; only where they arrive is there a terminal.
    if reporter is not None and not hasattr(session.config, "workerinput"):
        line = closing_line(report.longrepr[2] for report in reporter.stats.get("skipped", ()))
        if line:
            reporter.write_line(line)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def our_loggers_as_they_were() -> Iterator[None]:
    """A flow that a test runs in its own process carries our modules' lines from then on."""
    loggers = [logging.getLogger(name) for name in ("flows", "tasks", "infra")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture(autouse=True)
def a_command_s_end_is_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test calls a command as a function, its own process goes on, which a command would end in 2 s."""
    monkeypatch.setattr("infra.terminal._end_within", lambda seconds, status: None)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """What a test does to the environment of its process is undone with it."""
    with environment_unchanged():
        yield


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home that no person uses; all workers share it, and its server."""
    of_worker = tmp_path_factory.getbasetemp()
    home = (of_worker.parent if "PYTEST_XDIST_WORKER" in os.environ else of_worker) / "prefect-home"
    home.mkdir(exist_ok=True)
    return home


@pytest.fixture(scope="session")
def prefect_api(prefect_home: Path) -> str:
    """The address of a real Prefect server's API, up for the whole session: it ends with the run (see the reaper)."""
    address = prefect_home / "address.txt"
    with hold(prefect_home / "start.lock", on_wait=lambda holder: None):
        if not address.exists():
            address.write_text(start_prefect(prefect_home))
    return address.read_text()


@dataclass(frozen=True)
class SmallDataset:
    """A data set that is learned in seconds, its catalog, and a server of it."""

    catalog: Path
    server: HttpServer


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDataset]:
    """600 training and 200 test images under the name `mnist`, served over HTTP."""
    folder = tmp_path_factory.mktemp("small")
    write_small_dataset(folder)
    write_catalog(folder / "datasets.toml", folder)
    with serving({name: (folder / name).read_bytes() for name in FILE_NAMES}) as server:
        yield SmallDataset(folder / "datasets.toml", server)


@pytest.fixture(scope="session")
def channel() -> Iterator[Channel]:
    """A chat's incoming webhook, which keeps what it is told."""
    with Channel() as listening:
        yield listening


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, small_dataset: SmallDataset, channel: Channel) -> Iterator[Stack]:
    """A running stack, whose `mnist` is the small data set; started once, so leave it as you found it: running."""
    given = {
        "MNIST_MIRRORS": small_dataset.server.address,
        "DATASET_CATALOG": str(small_dataset.catalog),
        "STACK_FAILURE_NOTIFICATION_URL": channel.address,
    }
    running = Stack(tmp_path_factory.mktemp("stack"), given)
    try:
        running.start()
        yield running
    finally:
        running.stop(signal.SIGHUP)  # The terminal is closed.


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, prefect_api: str, small_dataset: SmallDataset) -> Pipeline:
    """A pipeline that a module's tests share, on the small data set."""
    return small_pipeline(tmp_path_factory.mktemp("pipeline"), prefect_api, small_dataset)


@pytest.fixture
def fresh_pipeline(tmp_path: Path, prefect_api: str, small_dataset: SmallDataset) -> Pipeline:
    """A pipeline of the test's own, on the small data set."""
    return small_pipeline(tmp_path, prefect_api, small_dataset)


def small_pipeline(folder: Path, prefect_api: str, dataset: SmallDataset) -> Pipeline:
    """A pipeline whose `mnist` is the small data set."""
    return Pipeline(
        folder,
        {
            "PREFECT_API_URL": prefect_api,
            "MNIST_MIRRORS": dataset.server.address,
            "DATASET_CATALOG": str(dataset.catalog),
        },
    )
