"""What is asked of MLflow: runs, their files, logged models and registered model versions."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from errno import ENOENT
from functools import partial
from pathlib import Path
from typing import Any, Literal

from infra.addresses import is_http, without_secrets
from infra.errors import TrackerError
from infra.mlflow_connection import MlflowConnection
from infra.scratch import temporary_folder

TerminalStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Run:
    """An MLflow run as it was when it was read."""

    run_id: str
    experiment_id: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each metric."""
    params: Mapping[str, str]
    model_ids: tuple[str, ...]
    """The models that the run logged; a program that was killed while it logged one, and continued, has two."""

    @property
    def model_id(self) -> str:
        """The one that is whole, as the program's last tags say; empty if there is none."""
        return self.tags.get("model_id", "")


@dataclass(frozen=True)
class Version:
    """A version of a registered model as it was when it was read."""

    name: str
    version: int
    run_id: str
    model_id: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The address by which MLflow loads it."""
        return f"models:/{self.name}/{self.version}"


class ExperimentTracker(MlflowConnection):
    """What is asked of MLflow. Every method raises `TrackerError`, as its connection does."""

    # Runs

    def experiments(self) -> list[str]:
        """The names of all experiments."""
        if self.is_new:
            return []  # To look creates no database, here and below.
        with self._translated("list the experiments"):
            return [experiment.name for experiment in self._client.search_experiments()]

    def find_runs(
        self,
        experiment: str,
        tags: Mapping[str, str],
        status: str | None = None,
        run_ids: Collection[str] | None = None,
    ) -> list[Run]:
        """The runs of `experiment` that have these tags and this status and are among these, newest first."""
        if self.is_new or (run_ids is not None and not run_ids):
            return []
        with self._translated(f"search the runs of experiment {experiment}"):
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                return []
            conditions = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
            conditions += [f"attributes.status = '{status}'"] if status else []
            conditions += [f"attributes.run_id IN ({', '.join(map(repr, sorted(run_ids)))})"] if run_ids else []
            search = partial(
                self._client.search_runs,
                [found.experiment_id],
                " and ".join(conditions),
                order_by=["attributes.start_time DESC"],
            )
            return [_run(run) for run in _all_pages(search)]

    def get_run(self, run_id: str) -> Run:
        """The run with this id."""
        with self._translated(f"read run {run_id}"):
            return _run(self._client.get_run(run_id))

    def start_run(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        """Create a run, RUNNING, and its experiment if there is none; the run's id."""
        with self._translated(f"start a run in experiment {experiment}"):
            run = self._client.create_run(self._experiment_id(experiment), run_name=name, tags=dict(tags))
            return str(run.info.run_id)

    def continue_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set an unfinished run to RUNNING again; why it had ended is no longer true of it."""
        # Whose it is comes first: a RUNNING run must never bear the name of a dead one.
        self.set_tags(run_id, tags)
        with self._translated(f"continue run {run_id}"):
            if "cause" in self._client.get_run(run_id).data.tags:
                self._client.delete_tag(run_id, "cause")
            self._client.update_run(run_id, status="RUNNING")

    def end_run(self, run_id: str, status: TerminalStatus, cause: str | None = None) -> None:
        """Give a run its terminal status; `cause` says in a line why it is not FINISHED."""
        if cause:
            self.set_tags(run_id, {"cause": cause})
        with self._translated(f"end run {run_id} as {status}"):
            self._client.set_terminated(run_id, status)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all at once."""
        from mlflow.entities import RunTag

        with self._translated(f"set tags of run {run_id}"):
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics that have one value a run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._translated(f"log metrics of run {run_id}"):
            self._client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])

    def log_curve(self, run_id: str, metric: str, values: Sequence[float], params: Mapping[str, str]) -> None:
        """Log parameters, and the values of a metric at the steps from 1 on; what the run has already is left."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        with self._translated(f"log {metric} of run {run_id}"):
            known = {point.step for point in self._client.get_metric_history(run_id, metric)} if values else set()
            new = [Metric(metric, value, now, step) for step, value in enumerate(values, 1) if step not in known]
            # MLflow takes so many at a time.
            for start in range(0, len(new), 1000):
                self._client.log_batch(run_id, metrics=new[start : start + 1000])
            left = [Param(key, value[:6000]) for key, value in params.items()]
            for start in range(0, len(left), 100):
                self._client.log_batch(run_id, params=left[start : start + 100])

    def metric_sum(self, run_id: str, metric: str) -> float:
        """The sum of a metric over all its steps."""
        with self._translated(f"read {metric} of run {run_id}"):
            return float(sum(point.value for point in self._client.get_metric_history(run_id, metric)))

    def metric_histories(self, run_id: str, metrics: Collection[str]) -> dict[str, list[tuple[int, float]]]:
        """Step and value of every point of each of these metrics, in the order of the steps."""
        with self._translated(f"read the metrics of run {run_id}"):
            return {
                metric: sorted((point.step, point.value) for point in self._client.get_metric_history(run_id, metric))
                for metric in metrics
            }

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Keep `text` with the run, as the file `path`."""
        with self._translated(f"log {path} to run {run_id}"):
            self._client.log_text(run_id, text, path)

    def log_file(self, run_id: str, file: Path, folder: str) -> None:
        """Keep a file with the run, in its `folder`."""
        with self._translated(f"log {file.name} to run {run_id}"):
            self._client.log_artifact(run_id, str(file), folder)

    def read_file(self, run_id: str, path: str, scratch: Path) -> bytes:
        """The bytes of a file that is kept with a run; it is copied through a folder under `scratch`."""
        with self._translated(f"read {path} of run {run_id}"), temporary_folder(scratch) as folder:
            kept = self._files_at(self._client.get_run(run_id).info.artifact_uri)
            return Path(kept.download_artifacts(path, str(folder))).read_bytes()

    # Models

    def download_model(self, model_id: str, folder: Path) -> None:
        """Copy every file of a logged model into `folder`."""
        with self._translated(f"download model {model_id}"):
            folder.mkdir(parents=True, exist_ok=True)
            location = self._client.get_logged_model(model_id).artifact_location
            self._files_at(location).download_artifacts("", str(folder))
            if not any(folder.iterdir()):
                raise FileNotFoundError(ENOENT, "No such file or directory", location)

    def find_version(self, name: str, run_id: str) -> Version | None:
        """The version of model `name` that was made from this run, if there is one."""
        with self._translated(f"search the versions of model {name}"):
            found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
            versions = sorted((_version(version) for version in found), key=lambda version: version.version)
        return versions[0] if versions else None

    def versions(self, name: str) -> list[Version]:
        """Every version of model `name`, oldest first."""
        if self.is_new:
            return []
        with self._translated(f"list the versions of model {name}"):
            found = _all_pages(partial(self._client.search_model_versions, f"name = '{name}'"))
            return sorted((_version(version) for version in found), key=lambda version: version.version)

    def create_version(self, name: str, run: Run, model_id: str, tags: Mapping[str, str]) -> Version:
        """Register a run's model as a new version of `name`; the tags are there as soon as the version is."""
        from mlflow.exceptions import MlflowException

        with self._translated(f"register model {model_id} as {name}"):
            try:
                if self._registered_model(name) is None:
                    self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            return _version(
                self._client.create_model_version(
                    name, f"models:/{model_id}", run.run_id, tags=dict(tags), model_id=model_id
                )
            )

    def set_version_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        with self._translated(f"set tags of {version.uri}"):
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def version_by_alias(self, name: str, alias: str) -> Version | None:
        """The version that has this alias, if there is one."""
        from mlflow.exceptions import MlflowException

        if self.is_new:
            return None
        with self._translated(f"read alias {alias} of model {name}"):
            try:
                return _version(self._client.get_model_version_by_alias(name, alias))
            except MlflowException as error:
                # An alias that nobody has set is an INVALID_PARAMETER_VALUE, a model that nobody registered
                # does not exist; anything else is a failure.
                if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                    return None
                raise

    def get_version(self, name: str, number: int) -> Version | None:
        """The version of model `name` with this number, if there is one."""
        from mlflow.exceptions import MlflowException

        if self.is_new:
            return None
        with self._translated(f"read version {number} of model {name}"):
            try:
                return _version(self._client.get_model_version(name, str(number)))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def model_tags(self, name: str) -> dict[str, str]:
        """The tags of a registered model; none if there is no such model."""
        if self.is_new:
            return {}
        with self._translated(f"read the tags of model {name}"):
            found = self._registered_model(name)
            return dict(found.tags) if found else {}

    def _registered_model(self, name: str) -> Any:
        # Not get_registered_model, nor create_registered_model of one that exists: to name the latest version of each
        # stage, MLflow reads every version of the model for their answers.
        found = self._client.search_registered_models(f"name = '{name}'", max_results=1)
        return found[0] if found else None

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a registered model; a database keeps 5,000 characters of its value."""
        with self._translated(f"set the tag {key} of model {name}"):
            self._client.set_registered_model_tag(name, key, value)

    def set_alias(self, version: Version, alias: str) -> None:
        """Let `alias` name this version, and no other."""
        with self._translated(f"set alias {alias} to {version.uri}"):
            self._client.set_registered_model_alias(version.name, alias, str(version.version))

    # Addresses for people

    def run_url(self, run: Run) -> str | None:
        """The page of a run, where MLflow has pages."""
        return self._page(f"experiments/{run.experiment_id}/runs/{run.run_id}")

    def version_url(self, version: Version) -> str | None:
        """The page of a model version, where MLflow has pages."""
        return self._page(f"models/{version.name}/versions/{version.version}")

    def _page(self, path: str) -> str | None:
        if not is_http(self.uri):
            return None
        # Beside what belongs to trained models; by itself MLflow opens among traces, prompts and judges.
        return f"{without_secrets(self.uri).rstrip('/')}/#/{path}?workflowType=machine_learning"

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise TrackerError(
                    f"The experiment {name} at {without_secrets(self.uri)} was deleted, and MLflow keeps its name.\n"
                    "Restore it (mlflow experiments restore), or name another with --experiment."
                )
            return str(found.experiment_id)
        try:
            location = f"{self._artifacts_uri}/{name}" if self._artifacts_uri else None
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)


def _all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Everything that a search of MLflow finds: it answers with 1,000 runs, or 10,000 versions, at a time."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _run(run: Any) -> Run:
    outputs = run.outputs.model_outputs if run.outputs else []
    return Run(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        model_ids=tuple(output.model_id for output in outputs),
    )


def _version(version: Any) -> Version:
    return Version(version.name, int(version.version), version.run_id, version.model_id or "", dict(version.tags))
