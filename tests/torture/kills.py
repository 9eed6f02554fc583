"""Whatever dies, whenever, the same command again: chains of kills, and what came of each."""

import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.http_server import Behaviour, HttpServer, serving
from tests.pipeline import Pipeline, still_running
from tests.torture.attempts import (
    POINTS,
    SECONDS_TO_END,
    Attempt,
    Point,
    cell,
    kill_all_of,
    living,
    processes_of,
    shown,
    wait_until_all_ended,
)
from tests.torture.bench import Bench

VICTIMS = ("flow", "runner", "program", "all")

EPOCHS_TO_SAVE = 15
"""Behind so many, of 0.1 s each, a checkpoint of the first is in the store, however busy the machine."""


@dataclass(frozen=True)
class Kill:
    """What is killed, and when."""

    point: Point
    victim: str
    delay: float
    """Seconds between the point and the kill."""
    at_once: bool
    """The command is run again without waiting for orphans to end."""


@dataclass
class Case:
    """A disturbance and what came of it: a row of the table."""

    what: str
    when: str
    saw: str = ""
    differences: list[str] = field(default_factory=list)
    struck: bool = True
    """False: the run had ended before."""
    times: int = 1
    """How often it struck."""
    left_out: str = ""
    """Why it was not tried here."""
    is_kill: bool = False
    """Of a chain of kills."""
    subject: str = ""

    def row(self) -> str:
        """For a markdown table."""
        begin = f"| {self.subject} | {self.what} | {self.when} |"
        if self.left_out:
            return f"{begin} | left out: {self.left_out} |"
        found = "<br>".join(self.differences).replace("|", "/") or ("none" if self.struck else "it had ended before")
        return f"{begin} {self.saw} | {found} |"


Tell = Callable[[Case], None]


def fallen(name: str, error: Exception, folder: Path) -> Case:
    """A case that could not be brought to its end is one that differs; what it left running in `folder` is ended."""
    kill_all_of(folder)
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = f"{lines[0]} ... {lines[-1]}" if len(lines) > 1 else "".join(lines)
    return Case(name, "", differences=[f"it fell with {type(error).__name__}: {cell(told)}"])


def plan(rng: random.Random, length: int, deck: list[Point], epochs: int) -> list[Kill]:
    """A chain of kills in the order in which a run passes their points, dealt from `deck`, which is refilled."""
    points: list[Point] = []
    while len(points) < length:
        if not deck:
            # Half as many epochs as other points, and all of those.
            others = [point for point in POINTS if not point.epoch]
            deck += [*others, *rng.sample([point for point in POINTS if 0 < point.epoch <= epochs], min(epochs, 12))]
            rng.shuffle(deck)
        points.append(deck.pop())
    return [
        Kill(point, rng.choice(VICTIMS), round(rng.uniform(0, 0.5) if rng.random() < 0.5 else 0, 3), rng.random() < 0.5)
        for point in sorted(points, key=POINTS.index)
    ]


def run_chain(bench: Bench, chain: list[Kill], tell: Tell = lambda case: None) -> list[Case]:
    """In a fresh home run the command and kill it, again and again, let it finish, and compare; a case each."""
    cases: list[Case] = []
    with serving(bench.files) as mirror:  # Its own, for it stalls when it is told to.
        home = bench.fresh(mirror.address)
        epoch = 0
        for number, kill in enumerate(chain):
            case, attempt = _run_and_kill(bench, mirror, home, kill)
            outcome = attempt.last[1]
            case.differences += _began_anew(attempt, epoch)
            epoch = max(epoch, attempt.epochs[1])
            cases.append(case)
            last = number == len(chain) - 1 or bool(outcome)
            if last:
                compared(bench, home, case, outcome, epoch)
            tell(case)
            if last:
                break
    return cases


def _began_anew(attempt: Attempt, epoch: int) -> list[str]:
    """The result would be the same, and the work of the epochs up to this one, of an attempt before, lost."""
    lost = attempt.epochs[0] == 1 and epoch >= EPOCHS_TO_SAVE
    return [f"it began anew, and an attempt before it was at epoch {epoch}"] if lost else []


def _run_and_kill(bench: Bench, mirror: HttpServer, home: Pipeline, kill: Kill) -> tuple[Case, Attempt]:
    stalled = kill.point.step == "download" and bool(mirror.files)
    mirror.resume = resume = threading.Event()
    if stalled:
        name, content = max(mirror.files.items(), key=lambda item: len(item[1]))
        at = random.Random(kill.delay).randrange(len(content) // 50, len(content))
        mirror.behaviour[name] = Behaviour(stall_after=at, times=1)
    orphans = processes_of(home.folder)
    attempt = Attempt(home)
    case = Case(f"{kill.victim}, SIGKILL", f"{kill.point} + {kill.delay:.2f} s", is_kill=True)
    reached = attempt.reach(kill.point, kill.delay)
    if reached is None:
        case.struck = False
    else:
        case.when = f"{reached} + {kill.delay:.2f} s"
        case.what = f"{strike(attempt, kill.victim)}, SIGKILL"
    resume.set()
    if stalled:
        mirror.behaviour.clear()
    try:
        status, _ = attempt.wait(SECONDS_TO_END * (1 + bench.load))
    except subprocess.TimeoutExpired:
        case.differences.append(f"the command did not end; it was {shown(psutil.Process(attempt.process.pid))}")
        os.killpg(attempt.process.pid, signal.SIGKILL)
        status, _ = attempt.wait()
    case.saw = "Killed (the shell's word)" if status == -signal.SIGKILL else attempt.said()
    if status == 0 and case.struck:
        case.saw = "nothing: the run goes on without it"
    case.differences += attempt.tracebacks
    if kill.at_once:
        _, alive = psutil.wait_procs(still_running(orphans), SECONDS_TO_END * bench.load)
        case.differences += [f"an orphan of an earlier run lives on: {shown(one)}" for one in still_running(alive)]
    else:
        case.differences += wait_until_all_ended(home, SECONDS_TO_END * bench.load)
    return case, attempt


def strike(attempt: Attempt, victim: str) -> str:
    """Kill; says who was there to be killed."""
    found = [] if victim == "flow" else living(attempt.pipeline, victim)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    if not found:
        attempt.process.kill()
    return victim if found else "flow"


def compared(bench: Bench, home: Pipeline, case: Case, outcome: dict[str, Any] | None = None, epoch: int = 0) -> Case:
    """The case, with what differs once the command has run to its end, unless it has an outcome already.

    `epoch` is the last that an attempt before has told of.
    """
    if not outcome:
        attempt = Attempt(home)
        status, outcome = attempt.wait()
        case.differences += _began_anew(attempt, epoch)
        if status:
            case.differences.append(f"the command again ended with {status}: {attempt.said()}")
            return case
    case.differences += wait_until_all_ended(home, SECONDS_TO_END * bench.load)
    case.differences += bench.compare(home, outcome)
    return case


def ended_well(bench: Bench, attempt: Attempt, case: Case) -> Case:
    """The same of an attempt that must end well by itself."""
    status, outcome = attempt.wait()
    expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
    return compared(bench, attempt.pipeline, case, outcome)


def expect(case: Case, holds: bool, what: str) -> None:
    """Note what does not hold as a difference."""
    if not holds:
        case.differences.append(what)
