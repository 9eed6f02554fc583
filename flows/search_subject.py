"""What a search is of: MNIST's program or a person's, with what is not drawn; checked before anything is paid for."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.program_preflight import prepare, wanted_of
from infra.compute import Compute, compute_target
from infra.compute.local_process import usable_cores
from infra.errors import ArgumentError
from infra.experiment_tracker import ExperimentTracker
from infra.services import Services
from infra.settings import Settings
from tasks.champion import CHAMPION
from tasks.dataset_catalog import describe_dataset
from tasks.download_dataset import download_dataset
from tasks.gate import GateRules, rules_for
from tasks.handoffs import Dataset
from tasks.mnist_training import PROGRAM, mnist_training
from tasks.program import Program, Value, read_program
from tasks.program_parameters import written
from tasks.program_training import Asked, with_parameters
from tasks.programs.mnist.digits.hyperparameters import DEFAULTS, Hyperparameters
from tasks.search.record import KEY, SearchRecord
from tasks.search.sampling import Sampling
from tasks.search.searching import Computes, Search
from tasks.search.space import Space, drawn, grid, read_space
from tasks.search.stopping import Stopping
from tasks.search.trial import Trial
from tasks.training import TrainingRequest
from tasks.upload_dataset import bring_data, upload_dataset
from tasks.yaml_values import read_yaml

MNIST_EXPERIMENT, MNIST_MODEL = "keras-mnist", "keras-dnn-mnist"
SEED = "seed"
MOST_WARM = 5


@dataclass(frozen=True)
class Subject:
    """A program and all that is said of it, but what is drawn."""

    program: Program
    space: Space
    asked: Asked
    request: TrainingRequest
    """That of trial 0."""
    model_name: str
    rules: GateRules
    settings: Settings
    bring: Callable[[bool], tuple[TrainingRequest, Mapping[str, Dataset]]]
    first: Mapping[str, Value]
    """The values of trial 0."""

    def with_data(self, overwrite: bool) -> tuple["Subject", Mapping[str, Dataset]]:
        """The same on the data as it came into the store, sent there if it is not, or with `overwrite`."""
        request, datasets = self.bring(overwrite)
        return replace(self, request=request), datasets

    def training(self, values: Mapping[str, Value]) -> TrainingRequest:
        """The training with these values of the space, see `Search.request`."""
        names = {one.name for one in self.space}
        fixed = {name: text for name, text in self.asked.parameters.items() if name not in names}
        asked = _asked(self.asked, self.program, fixed | {name: written(value) for name, value in values.items()})
        return replace(
            self.request, training=with_parameters(self.request.training, self.program, asked, self.settings)
        )

    @property
    def last(self) -> int | None:
        """The report of the last epoch, where the program has a parameter that says so and it is not drawn."""
        epochs = self.request.training.arguments.get("epochs")
        return epochs if isinstance(epochs, int) and all(one.name != "epochs" for one in self.space) else None

    def computes(self, given: Mapping[str, Any], machine: Compute, services: Services) -> Computes:
        """Where the trials run: on this machine at most one a core, on a cluster as many as are wanted at once."""
        if given["compute"] == "local":
            return Computes(lambda request: machine, min(given["at_once"], usable_cores()))

        def of(request: TrainingRequest) -> Compute:
            settings = services.settings
            workload = request.workload(settings)
            return compute_target("ray", settings, given["accelerator"], given["cluster"], workload)

        return Computes(of, given["at_once"])


def _asked(asked: Asked, program: Program, parameters: Mapping[str, str]) -> Asked:
    """With these parameters; a seed is the runner's where the program has none."""
    if SEED not in parameters or any(one.name == SEED for one in program.parameters):
        return replace(asked, parameters=parameters)
    try:
        seed = int(parameters[SEED])
    except ValueError:
        raise ArgumentError(f"--param seed={parameters[SEED]}: expected a whole number.") from None
    return replace(asked, parameters={k: v for k, v in parameters.items() if k != SEED}, seed=seed)


def subject_of(given: Mapping[str, Any], services: Services, bundle: Path) -> Subject:
    """What the parameters of the flow `search` mean. Raises `UsageError` and `ProgramInvalid` as `prepare` does."""
    if given["compute"] == "ray" and services.settings.ray_cluster_file:
        raise ArgumentError(
            "A search has a job for each trial, and a cluster of RAY_CLUSTER_FILE is launched for one.\n"
            "Launch it with `ray up`, and set RAY_JOBS_URL to the address of its dashboard."
        )
    program = read_program(given["program"] or PROGRAM, given["entry"])
    if program.command is None:
        raise ArgumentError(
            f"A search draws parameters, and {program.entry} of {program.name} declares none, for it is a script.\n"
            "Declare them in an MLproject: see docs/programs.md."
        )
    if program.objective is None:
        raise ArgumentError(
            f"A search needs to know what is best, and the MLproject of {program.name} names no objective.\n"
            "Add one, such as objective: {metric: val_accuracy, goal: maximize}."
        )
    told = read_yaml(given["space"].expanduser()) if given["space"] else program.search
    if told is None:
        raise ArgumentError(
            f"The MLproject of {program.name} does not say what to try.\n"
            "Add search: to it, or name a file: --space FILE."
        )
    space = read_space(told, program.parameters)
    texts = {name: str(value) for name, value in given["parameters"].items()}
    first = _first(program, space, texts)
    asked = {**texts, **{name: written(value) for name, value in first.items()}}
    subject = (_own if given["program"] else _mnist)({**given, "parameters": asked}, program, services, bundle)
    subject = replace(subject, space=space, first=first)
    if given["from_champion"]:
        subject = replace(subject, first={**first, **_champion(subject, services)})
    return subject


def _first(program: Program, space: Space, texts: Mapping[str, str]) -> dict[str, Value]:
    """Of each parameter of the space what was given, else its default, else the first that the space has."""
    declared = {one.name: one for one in program.parameters}
    first: dict[str, Value] = {}
    for one in space:
        parameter = declared.get(one.name)
        value = parameter.default if parameter else None
        if one.name in texts and parameter:
            value = program.check({one.name: texts[one.name]}, (), ("",)).parameters[one.name]
        elif one.name in texts:
            value = int(texts[one.name]) if texts[one.name].isdecimal() else None
        first[one.name] = one.values[0] if value is None else value
    return drawn(space, first)


def _champion(subject: Subject, services: Services) -> dict[str, Value]:
    champion = services.tracker.version_by_alias(subject.model_name, CHAMPION)
    if champion is None:
        raise ArgumentError(f"--from-champion: the model {subject.model_name} has no champion.\nLeave it out.")
    params = services.tracker.get_run(champion.run_id).params
    declared = {one.name: one for one in subject.program.parameters}
    return {n: declared[n].value(params[n]) for n in subject.first if n in params and n in declared}


def _mnist(given: Mapping[str, Any], program: Program, services: Services, bundle: Path) -> Subject:
    settings = services.settings
    description = describe_dataset(given["dataset"], settings.dataset_catalog)
    values = program.check(given["parameters"], (), (description.name,)).parameters
    asked = Hyperparameters(**{name: value for name, value in values.items() if name in type(DEFAULTS).model_fields})

    def request_on(described: Any) -> TrainingRequest:
        training = mnist_training(described, asked, settings)
        return TrainingRequest(training, given["experiment"] or MNIST_EXPERIMENT, accelerator=given["accelerator"])

    def bring(overwrite: bool) -> tuple[TrainingRequest, Mapping[str, Dataset]]:
        files = download_dataset(description, settings, given["if_unreachable"])
        stored = upload_dataset(files, services, overwrite)
        return request_on(files.description), {stored.name: stored}

    request = request_on(description)
    told = {
        one.name: written(request.training.arguments[one.name]) for one in program.parameters if one.dataset is None
    }
    rules = rules_for(given["gate"], given["gate_margin"], True, program.objective)
    rules = replace(rules, recall_floor=given["recall_floor"])
    model_name = given["model_name"] or MNIST_MODEL
    return Subject(program, (), Asked(told), request, model_name, rules, settings, bring, {})


def _own(given: Mapping[str, Any], program: Program, services: Services, bundle: Path) -> Subject:
    wanted = wanted_of({**given, "arguments": [], "seed": None, "retrain": False})
    asked = _asked(wanted.asked, program, wanted.asked.parameters)
    prepared = prepare(replace(wanted, asked=asked), services, bundle)

    def bring(overwrite: bool) -> tuple[TrainingRequest, Mapping[str, Dataset]]:
        datasets = bring_data(prepared.sources, given["dataset_name"], given["in_place"], services, overwrite)
        return prepared.on(datasets), datasets

    parameters = wanted.asked.parameters
    return Subject(
        prepared.program,
        (),
        replace(asked, parameters=parameters),
        prepared.request,
        prepared.model_name,
        prepared.rules,
        services.settings,
        bring,
        {},
    )


def _warm(given: Mapping[str, Any], subject: Subject, metric: str, tracker: ExperimentTracker) -> Iterator[Trial]:
    """The trials of the searches that are named; raises `ArgumentError` for one that teaches this one nothing."""
    named, experiment = given["warm_start"], subject.request.experiment
    if named and given["sampler"] != "tpe":
        raise ArgumentError(f"--warm-start: --sampler {given['sampler']} learns from no trial.\nTake --sampler tpe.")
    if len(named) > MOST_WARM:
        raise ArgumentError(f"--warm-start names {len(named)} searches, expected {MOST_WARM} at most.")
    ours = {one.name: one.kind for one in subject.space}
    for run_id in named:
        run = tracker.get_run(run_id)
        space = {one["name"]: one["kind"] for one in json.loads(run.params.get("space", "[]"))}
        if KEY not in run.tags or space != ours or json.loads(run.params.get("metric", "0")) != metric:
            told = ", ".join(f"{name} ({kind})" for name, kind in space.items()) or "nothing: it is no search"
            raise ArgumentError(
                f"--warm-start {run_id}: that run searched {told}, and this search draws "
                f"{', '.join(f'{name} ({kind})' for name, kind in ours.items())} for {metric}."
            )
        trials = SearchRecord(tracker, experiment, run_id, metric).trials()
        if not trials:
            raise ArgumentError(f"--warm-start {run_id}: it has no trials in the experiment {experiment}.")
        yield from (trials[number] for number in sorted(trials))


def search_of(given: Mapping[str, Any], subject: Subject, services: Services) -> Search:
    """All that decides the trials; raises `ArgumentError` for rules that contradict each other, and values that the
    program does not take."""
    objective = subject.program.objective
    assert objective
    factor, amount = given["slack_factor"], given["slack_amount"]
    if given["stop"] != "bandit" and (factor is not None or amount is not None):
        raise ArgumentError(f"A slack is the bandit's, and the rule is --stop {given['stop']}.\nLeave it out.")
    if factor is not None and amount is not None:
        raise ArgumentError("--slack-factor and --slack-amount are two ways to say the same.\nGive one of them.")
    if given["sampler"] == "grid":
        grid(subject.space)
    for one in subject.space:
        for value in one.values:  # Of a range its ends.
            subject.training({**subject.first, one.name: value})
    stopping = Stopping(
        rule=given["stop"],
        goal=objective.goal,
        evaluation_interval=given["evaluation_interval"],
        delay_evaluation=given["delay_evaluation"],
        slack_factor=0.1 if factor is None and amount is None else factor,
        slack_amount=amount,
        last=subject.last,
    )
    warm = tuple(_warm(given, subject, objective.metric, services.tracker))
    sampling = Sampling(subject.space, given["sampler"], given["seed"], objective.goal, subject.first, warm)
    return Search(
        sampling=sampling,
        stopping=stopping,
        trials=given["trials"],
        at_once=given["at_once"],
        as_they_come=given["as_they_come"],
        metric=objective.metric,
        request=subject.training,
    )
