"""Serve a registered model over HTTP: whatever version is champion, and the next one without one failed call.

python -m flows.serve                                  in the foreground, until Ctrl-C
python -m flows.serve --model-name fashion --port 8001
python -m flows.serve status | logs | stop             of the one that runs
python -m flows.serve test                             score the test set; exit 1 unless it is the registered accuracy
python -m flows.serve keys --rotate                    a new primary key; the one before lets in until the next time

SIGUSR1 has it look at the alias at once. Exit status: 0 done, 1 refused or failed, 2 wrong usage.
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import argparse
import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from flows.plain_command import add_model_name, failed
from infra.background import in_background
from infra.errors import ArgumentError, PipelineError
from infra.lock import hold, is_held
from infra.private_file import write_private
from infra.service.application import OPEN_PATHS, application
from infra.service.contract import as_json
from infra.service.keys import Keys
from infra.service.network import import_keras
from infra.service.served import Served, Standing
from infra.service.server import SECONDS_TO_END, Server, bound
from infra.services import Services
from infra.settings import Settings, load_settings
from infra.stack.guard import Guard
from infra.tracker_process import TrackerProcess
from tasks.champion import CHAMPION
from tasks.served_version import SECONDS_BETWEEN, ServedVersion, Wanted

LOGGER = logging.getLogger("flows.serve")

LOOPBACK = "127.0.0.1"

SECONDS_TO_FINISH = 5
"""For who follows the alias."""

CONNECTIONS_IN_LINE = 2_048
"""Until they are taken."""


class Place:
    """What the service of one model keeps on this machine."""

    def __init__(self, settings: Settings, model_name: str) -> None:
        self.service = settings.home / "service"
        self.folder = self.service / model_name
        self.lock, self.log, self.facts = (
            self.folder / name for name in ("service.lock", "service.log", "service.json")
        )
        self.example = self.folder / "example.json"

    def running(self) -> dict[str, Any]:
        """What the running service says of itself. Raises `ArgumentError` if none runs."""
        if is_held(self.lock):
            with suppress(OSError, ValueError):
                return dict(json.loads(self.facts.read_text()))
        raise ArgumentError(
            f"No service of {self.folder.name} runs in {self.service}.\nStart it: python -m flows.serve"
        )


def serve(asked: argparse.Namespace, settings: Settings) -> int:
    """Serve until told to end. Raises `PipelineError` before anything listens."""
    place = Place(settings, asked.model_name)
    keys = Keys(place.service)

    def running_already(holder: str) -> None:
        raise ArgumentError(
            f"{asked.model_name} is served already from {place.service} ({holder}).\nEnd it: python -m flows.serve stop"
        )

    with hold(place.lock, running_already), bound(asked.host, asked.port) as listener:
        place.facts.unlink(missing_ok=True)  # Those of a service that was killed.
        _log_to(place.log)
        standing, services = Standing(), Services(settings, TrackerProcess(settings))
        wanted = Wanted(asked.model_name, asked.alias, place.folder, asked.trust_code)
        version = ServedVersion(wanted, standing, services)
        if not asked.wait:
            in_background(import_keras)  # While MLflow is imported by a process of its own.
        _begin(version, asked.wait)
        address = f"http://{asked.host}:{listener.getsockname()[1]}"
        addresses = [address] if asked.host == LOOPBACK else []
        app = Guard(application(standing), addresses, keys, OPEN_PATHS, f"the key in {keys.file}, as a bearer token")
        server = Server(app, standing)
        signal.signal(signal.SIGUSR1, lambda *_: version.look_now())
        following = in_background(version.follow)
        listener.listen(CONNECTIONS_IN_LINE)
        assert standing.served
        _tell(standing.served, address, place, keys, asked)
        server.run([listener])
        version.look_now()
        with suppress(TimeoutError):  # Not in the middle of what TensorFlow does for it.
            following.result(SECONDS_TO_FINISH)
        LOGGER.info("Ended: every request was answered" if not server.force_exit else "Ended at once")
    return 0


def _begin(version: ServedVersion, wait: bool) -> None:
    told = False
    while True:
        try:
            return version.begin()
        except PipelineError as error:
            if not wait:
                raise
            if not told:
                LOGGER.info("Waiting: %s", str(error).partition("\n")[0])
            told = True
            time.sleep(SECONDS_BETWEEN)


def _log_to(file: Path) -> None:
    kept = RotatingFileHandler(file, maxBytes=10_000_000, backupCount=1)
    shown = logging.StreamHandler()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", handlers=[kept, shown], force=True)
    for name in ("flows", "tasks", "infra"):
        logging.getLogger(name).setLevel(logging.INFO)


def _tell(served: Served, address: str, place: Place, keys: Keys, asked: argparse.Namespace) -> None:
    contract = served.network.contract
    rows = {one.name: np.zeros((1, *(size or 1 for size in one.shape)), one.dtype) for one in contract.inputs}
    simple = len(contract.inputs) == len(contract.outputs) == 1
    example = {"data": next(iter(rows.values()))} if simple else {"inputs": rows}
    write_private(place.example, as_json(example).decode())
    facts = {
        "address": address,
        "key_file": str(keys.file),
        "model": served.name,
        "model_version": served.version,
        "pid": os.getpid(),
    }
    write_private(place.facts, json.dumps(facts) + "\n")
    if asked.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
    where = "" if asked.host == LOOPBACK else "  It is reached from elsewhere, unencrypted: put TLS in front of it.\n"
    infra.terminal.say(
        f"Serving {served.name} version {served.version} on {address}; the keys are in {keys.file}\n{where}"
        f"  curl -H @{keys.header} -d @{place.example} {address}/{'score' if simple else 'invocations'}\n"
    )


def status(asked: argparse.Namespace, settings: Settings) -> int:
    """Say what the running service serves, and whether it is ready: exit status 1 if not."""
    facts = Place(settings, asked.model_name).running()
    try:
        answer = httpx.get(f"{facts['address']}/v2/health/ready", timeout=5, trust_env=False)
        facts |= answer.json()
    except httpx.HTTPError as error:
        facts |= {"ready": False, "reason": type(error).__name__}
    sys.stdout.write(json.dumps(facts) + "\n" if asked.json else "".join(f"{k:<14} {v}\n" for k, v in facts.items()))
    return 0 if facts["ready"] else 1


def logs(asked: argparse.Namespace, settings: Settings) -> int:
    """The last lines of the log, of a service that has ended too."""
    place = Place(settings, asked.model_name)
    if not place.log.is_file():
        raise ArgumentError(f"There is no {place.log}: no service of {asked.model_name} has run.")
    with place.log.open(encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(deque(lines, 200))
    return 0


def stop(asked: argparse.Namespace, settings: Settings) -> int:
    """End the running service, and wait until it has."""
    place = Place(settings, asked.model_name)
    os.kill(int(place.running()["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END + 10
    while is_held(place.lock):
        if time.monotonic() > deadline:
            raise PipelineError(f"The service of {asked.model_name} has not ended after {SECONDS_TO_END + 10} s.")
        time.sleep(0.1)
    return 0


def keys(asked: argparse.Namespace, settings: Settings) -> int:
    """Where the keys are; with --rotate, after a new one was made."""
    kept = Keys(settings.home / "service")
    if asked.rotate:
        kept.rotate()
    done = "The primary key is new; the one before is the secondary, and the one before that lets nobody in.\n"
    sys.stdout.write(f"{done if asked.rotate else ''}The keys are in {kept.file}\n")
    return 0


def test(asked: argparse.Namespace, settings: Settings) -> int:
    """Score the test set with the running service."""
    from tasks.service_test import score_test_set

    place = Place(settings, asked.model_name)
    facts = place.running()
    services = Services(settings, TrackerProcess(settings))
    facts |= httpx.get(f"{facts['address']}/v2/health/ready", timeout=5, trust_env=False).json()
    facts["model_version"] = facts["version"]
    key = Keys(place.service)()[0].decode()
    found = score_test_set(facts, key, asked.data, place.folder / "test.png", services)
    sys.stdout.write(json.dumps(found.as_dict()) + "\n" if asked.json else found.table(sys.stdout.isatty()))
    return 0 if found.is_as_registered else 1


ACTIONS = {"serve": serve, "test": test, "status": status, "logs": logs, "stop": stop, "keys": keys}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.serve",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="serve", help="default: serve")
    add_model_name(parser)
    parser.add_argument("--alias", default=CHAMPION, metavar="ALIAS", help="default %(default)s")
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDRESS", help="default %(default)s: this machine alone")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default %(default)s; 0: a free one")
    parser.add_argument("--wait", action="store_true", help="wait for a first version that can be served")
    parser.add_argument("--trust-code", action="store_true", help="load a model that needs its program's own code")
    parser.add_argument("--rotate", action="store_true", help="with keys: make a new one")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with test: images and labels, see docs/service.md")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments ask for; returns the exit status."""
    commands = parser()
    asked = commands.parse_args(arguments)
    if asked.rotate and asked.action != "keys":
        commands.error("--rotate goes with keys")
    if asked.data and asked.action != "test":
        commands.error("--data goes with test")
    try:
        return ACTIONS[asked.action](asked, load_settings())
    except PipelineError as error:
        return failed(error, asked.debug)


if __name__ == "__main__":
    infra.terminal.run(main, "Stopped.")
