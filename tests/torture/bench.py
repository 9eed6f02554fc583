"""A bench: a subject with its data on a mirror, homes to run it in, and the undisturbed run to compare with."""

import contextlib
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.http_server import serving
from tests.pipeline import Pipeline
from tests.torture.attempts import kill_all_of
from tests.torture.facts import check_nothing_left, differences, facts_of, objective_of
from tests.torture.subjects import COUNTER, Subject

SEEDS = 5
"""Of so many undisturbed runs the objective says by how much it differs by chance."""


@dataclass
class Home(Pipeline):
    """Where a subject's runs keep their state, and how it is asked for."""

    subject: Subject = COUNTER
    data: Path = Path()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.module = self.subject.module

    def start(self, *flags: str, terminal: int | None = None) -> Any:
        """Start the subject's command, with these flags too."""
        return super().start(*self.subject.command(self.data, *flags), terminal=terminal)


@dataclass(frozen=True)
class Undisturbed:
    """What is compared with."""

    facts: Mapping[str, Any]
    objective: float = 0
    spread: float = 0
    """By how much the objective differs between seeds; 0 of a subject that continues exactly."""


@dataclass(frozen=True)
class Bench:
    """What the cases of a subject share."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    subject: Subject = COUNTER
    mirror: str = ""
    """The address of a mirror of the data set."""
    data: Path = Path()
    """The folder with the same files."""
    undisturbed: "Future[Undisturbed]" = field(default_factory=Future)
    seed: int = 0
    moments: int = 10
    """At how many drawn moments a fault strikes that can strike anywhere."""
    load: float = 1
    """Processes that want a core, for each core: what must be done within seconds may take so many times longer."""

    @property
    def files(self) -> dict[str, bytes]:
        """What a mirror serves."""
        return {path.name: path.read_bytes() for path in self.data.iterdir() if path.is_file()}

    def apart(self, name: str) -> "Bench":
        """The same in a folder of its own."""
        return replace(self, folder=Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)))

    def fresh(self, mirror: str = "", **changes: str) -> Home:
        """A home that nothing was run in, whose data set comes from `mirror` or, by default, the bench's."""
        folder = Path(tempfile.mkdtemp(prefix="home-", dir=self.folder))
        catalog = folder / "datasets.toml"
        self.subject.write_catalog(catalog, self.data, mirror or self.mirror)
        environment = {**self.environment, "DATASET_CATALOG": str(catalog), **changes}
        return Home(folder, environment, subject=self.subject, data=self.data)

    def fresh_with_server_of_its_own(self, mirror: str = "") -> Home:
        """The same, whose runs start a temporary Prefect server, as a person's do who has started none."""
        home = self.fresh(mirror)
        del home.environment["PREFECT_API_URL"]
        home.environment["PREFECT_HOME"] = str(home.folder / "prefect")
        return home

    def rng(self, purpose: str) -> random.Random:
        """Draws by the seed, independent of what else is drawn."""
        return random.Random(f"{self.seed} {purpose}")

    def compare(self, home: Pipeline, outcome: Mapping[str, Any]) -> list[str]:
        """What differs from the undisturbed run; waits for its end."""
        expected = self.undisturbed.result()
        found = differences(expected.facts, facts_of(self.subject, home, outcome))
        if self.subject.grade != "exact":
            objective = objective_of(home, outcome)
            # An accuracy is a count: as far as that is not further, whatever the last digit says.
            if abs(objective - expected.objective) > expected.spread + 1e-9:
                by_chance = f"{SEEDS} seeds differ by {expected.spread:.2g}"
                found.append(
                    f"{self.subject.metric}: expected {expected.objective:.6g}, found {objective:.6g}; {by_chance}"
                )
        return found


def _run_undisturbed(bench: Bench) -> Undisturbed:
    home = bench.fresh()
    outcome = home.run(timeout_seconds=600)
    facts = facts_of(bench.subject, home, outcome)
    check_nothing_left(facts)
    grade = bench.subject.grade
    assert facts["run grade"] == grade, f"{bench.subject.name} continues: {facts['run grade']}, expected {grade}"
    if grade == "exact":
        return Undisturbed(facts)
    objectives = [objective_of(home, outcome)]
    for number in range(1, SEEDS):
        # A model of its own: it is not to be compared with the one before.
        apart = (f"--seed={number}", f"--model-name=seed-{number}", "--experiment=seeds")
        objectives.append(objective_of(home, home.run(*apart, timeout_seconds=600)))
    return Undisturbed(facts, objectives[0], max(objectives) - min(objectives))


@contextlib.contextmanager
def benches(folder: Path, prefect_api: str, subjects: Iterable[Subject], **drawn: Any) -> Iterator[dict[str, Bench]]:
    """A bench for each subject, by name, whose undisturbed runs are begun in turn; `drawn` are more of its fields."""
    import mlflow  # noqa: F401  Several threads will want it, and its modules import each other.

    pool = ThreadPoolExecutor(1, "undisturbed run")
    made = {}
    with contextlib.ExitStack() as stack:
        # From the last to the first: none of those that wait begins, and the one that runs is ended.
        stack.callback(pool.shutdown)
        stack.callback(kill_all_of, folder)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for subject in subjects:
            place = folder / subject.name
            place.mkdir()
            subject.make_data(place / "data")
            one = Bench(place, {"PREFECT_API_URL": prefect_api}, subject, data=place / "data", **drawn)
            one = replace(one, mirror=stack.enter_context(serving(one.files)).address)
            made[subject.name] = replace(one, undisturbed=pool.submit(_run_undisturbed, one))
        yield made
