"""Read a script or notebook that submits to Azure ML (SDK v1), and print the commands that do the same here.

python -m flows.from_azureml NOTEBOOK_OR_SCRIPT

Nothing of it is run. What it could not translate is named, with its line. Exit status: 0 if there is a command, 1 if
there is none, 2 if the file is no Python.
"""

import ast
import importlib.util
import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra.settings import load_settings
from tasks.dataset_catalog import read_catalog

_SCRIPTS = {"TensorFlow", "Estimator", "PyTorch", "SKLearn", "Chainer", "ScriptRunConfig"}
_SEARCHES = {"HyperDriveConfig", "HyperDriveRunConfig"}
_DEPLOYS = {"deploy", "deploy_from_model", "deploy_from_image"}
_SAMPLINGS = {"RandomParameterSampling": "random", "GridParameterSampling": "grid", "BayesianParameterSampling": "tpe"}
_STOPS = {"BanditPolicy": "bandit", "MedianStoppingPolicy": "median", "NoTerminationPolicy": "none"}
_SPACES: dict[str, Callable[..., object]] = {
    "choice": lambda *of: {"choices": list(of[0] if len(of) == 1 and isinstance(of[0], list | tuple | range) else of)},
    "uniform": lambda low, high: {"uniform": [low, high]},
    "loguniform": lambda low, high: {"loguniform": [math.exp(low), math.exp(high)]},
    "randint": lambda upper: {"int": [0, upper - 1]},
}


@dataclass
class _Job:
    """What a script is submitted with."""

    line: int
    folder: str
    script: str
    words: list[str] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    """What `--data` says of each data set, by name."""


class Submission:
    """What a submitting script says."""

    def __init__(self, tree: ast.Module, beside: Path) -> None:
        """`beside` is the folder of the script, which its own paths are relative to."""
        self._beside = beside
        self._values: dict[str, list[ast.expr]] = {}
        self._registered: dict[str, str] = {}
        self._jobs: dict[int, _Job] = {}
        self.left: list[str] = []
        """What could not be translated, with its line."""
        self.commands: list[str] = []
        self._experiment = self._model = ""
        calls = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self._values.setdefault(node.targets[0].id, []).append(node.value)
            elif isinstance(node, ast.Call):
                calls.append(node)
        calls.sort(key=lambda call: (call.lineno, call.col_offset))
        for call in calls:
            self._prepare(call)
        found = [call for call in calls if _name(call) in _SCRIPTS]
        for call in found:
            self._jobs[id(call)] = self._job(call)
        for call in found:
            self._train(self._jobs[id(call)])
        for call in calls:
            if _name(call) in _SEARCHES:
                self._search(call)
            elif _name(call) in _DEPLOYS:
                self._serve(call)

    def _prepare(self, call: ast.Call) -> None:
        """Take down what other calls refer to."""
        name = _name(call)
        if name == "Experiment":
            self._experiment = str(self._value(self._of(call, "name", position=1)) or "")
        elif name == "register_model":
            self._model = str(self._value(self._of(call, "model_name", position=0)) or "")
        elif name == "register" and isinstance(call.func, ast.Attribute):
            known = self._value(self._of(call, "name", position=1))
            made = self._call(call.func.value)
            if known and made and (place := self._place(made)):
                self._registered[str(known)] = place
        elif name in ("upload", "upload_directory"):
            source = self._value(self._of(call, "src_dir", position=0))
            target = self._value(self._of(call, "target_path", "target", position=1))
            if source and target:
                self._registered[str(target)] = self._path(str(source))

    def _job(self, call: ast.Call) -> _Job:
        folder = self._value(self._of(call, "source_directory", position=0))
        script = self._value(self._of(call, "entry_script", "script", position=1))
        job = _Job(call.lineno, self._path(str(folder or ".")), str(script or "SCRIPT"))
        if folder is None or script is None:
            self._leave(call, "its folder or its script is not written down as a text: SCRIPT stands for it")
        arguments = self._resolved(self._of(call, "script_params", "arguments"))
        if isinstance(arguments, ast.Dict):
            items = [one for pair in zip(arguments.keys, arguments.values, strict=True) for one in pair if one]
        else:
            items = list(arguments.elts) if isinstance(arguments, ast.List | ast.Tuple) else []
        job.words = [word for one in items if (word := self._word(one, job)) is not None]
        if len(job.data) > 1:
            self._leave(call, "several data sets: {data_folder_NAME} of each stands in its command")
        return job

    def _word(self, node: ast.expr, job: _Job) -> str | None:
        """An argument of the script; None for what only a search gives it."""
        value = self._value(node)
        if value is not None:
            return str(value)
        call = self._call(node)
        inner, named = call, ""
        while inner is not None and isinstance(inner.func, ast.Attribute) and _name(inner).startswith(("as_", "path")):
            named = (
                str(self._value(inner.args[0]) or named) if _name(inner) == "as_named_input" and inner.args else named
            )
            if _name(inner) == "path":
                path = str(self._value(self._of(inner, "path", position=0)) or "data")
                return self._data(job, named or path, self._registered.get(path, ""))
            inner = self._call(inner.func.value)
        if (inner is not None and inner is not call) or (call and "Dataset" in ast.unparse(call.func)):
            known = str(self._value(self._of(inner, "name", position=1)) or "") if inner else ""
            place = self._registered.get(known, "") or (self._place(inner) if inner else "")
            return self._data(job, named or known or "data", place)
        self._leave(node, f"argument {ast.unparse(node)}: VALUE stands for it")
        return "VALUE"

    def _data(self, job: _Job, name: str, place: str) -> str:
        name = re.sub(r"[^\w.-]+", "-", name)
        if not place:
            self.left.append(f"data set {name}: FOLDER stands for the folder, or the address, where its files are")
        job.data[name] = place or "FOLDER"
        return f"{{data_folder_{name}}}" if len(job.data) > 1 else "{data_folder}"

    def _place(self, call: ast.Call) -> str:
        """Where the files of a data set are that is made of paths: the name of one of the catalog, or a folder."""
        given = self._value(self._of(call, "path", position=0))
        paths = [str(one) for one in (given if isinstance(given, list | tuple) else [given]) if one]
        names = {path.rpartition("/")[2] for path in paths}
        for name, one in read_catalog(load_settings().dataset_catalog).items():
            if names and names <= {file.name for file in one.files}:
                return name
        return paths[0] if len(paths) == 1 and "://" in paths[0] else ""

    def _flags(self, job: _Job) -> list[str]:
        flags = [*(("--experiment", self._experiment) if self._experiment else ())]
        flags += ["--model-name", self._model] if self._model else []
        several = len(job.data) > 1
        for name, place in job.data.items():
            flags += ["--data", f"{name}={place}" if several else place]
        return flags

    def _train(self, job: _Job) -> None:
        command = [*_here(), "flows.train", "--program", job.folder, "--entry", job.script, *self._flags(job)]
        self.commands.append(_shell([*command, *(["--", *job.words] if job.words else [])]))

    def _search(self, call: ast.Call) -> None:
        job = self._jobs.get(id(self._call(self._of(call, "estimator", "run_config"))))
        sampling = self._call(self._of(call, "hyperparameter_sampling"))
        space = self._space(sampling)
        if job is None or not space or importlib.util.find_spec("flows.search") is None:
            self._leave(call, "this search")
            return
        metric = str(self._value(self._of(call, "primary_metric_name")) or "METRIC")
        goal = "minimize" if "MIN" in ast.unparse(call).upper().partition("PRIMARY_METRIC_GOAL")[2][:60] else "maximize"
        self.commands.append(_project(job, space, metric, goal))
        flags = ["--sampler", _SAMPLINGS[_name(sampling)]] if sampling and _name(sampling) in _SAMPLINGS else []
        for theirs, ours in (("max_total_runs", "--trials"), ("max_concurrent_runs", "--at-once")):
            flags += [ours, str(value)] if (value := self._value(self._of(call, theirs))) is not None else []
        policy = self._call(self._of(call, "policy"))
        flags += ["--stop", _STOPS.get(_name(policy), "none") if policy else "none"]
        for theirs in ("evaluation_interval", "slack_factor", "slack_amount", "delay_evaluation"):
            if policy and (value := self._value(self._of(policy, theirs))) is not None:
                flags += [f"--{theirs.replace('_', '-')}", str(value)]
        if policy and _name(policy) not in _STOPS:
            self._leave(policy, f"{_name(policy)}: no trial is stopped early")
        self.commands.append(_shell([*_here(), "flows.search", "--program", job.folder, *self._flags(job), *flags]))

    def _space(self, sampling: ast.Call | None) -> dict[str, object]:
        given = self._resolved(self._of(sampling, "parameter_space", position=0)) if sampling else None
        space: dict[str, object] = {}
        for key, one in zip(given.keys, given.values, strict=True) if isinstance(given, ast.Dict) else ():
            call, name = self._call(one), str(self._value(key) if key else "").lstrip("-")
            values = [self._value(argument) for argument in call.args] if call else []
            if call and _name(call) in _SPACES and None not in values:
                space[name] = _SPACES[_name(call)](*values)
            else:
                self._leave(one, f"{name} = {ast.unparse(one)}: it is not searched")
        return space

    def _serve(self, call: ast.Call) -> None:
        if importlib.util.find_spec("flows.serve") is None or not self._model:
            self._leave(call, "this service")
        elif not any("flows.serve" in command for command in self.commands):
            self.commands.append(_shell([*_here(), "flows.serve", "--model-name", self._model]))

    def _leave(self, node: ast.AST, what: str) -> None:
        self.left.append(f"line {getattr(node, 'lineno', '?')}: {what}")

    def _path(self, folder: str) -> str:
        path = self._beside / folder
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def _of(self, call: ast.Call | None, *names: str, position: int = 99) -> ast.expr | None:
        """The argument of a call by one of its names, or its position."""
        found = next((one.value for one in call.keywords if one.arg in names), None) if call else None
        return found or (call.args[position] if call and position < len(call.args) else None)

    def _resolved(self, node: ast.expr | None, depth: int = 9) -> ast.expr | None:
        if isinstance(node, ast.Name) and node.id in self._values and depth:
            line = node.lineno  # What is assigned in it is of what was assigned before.
            before = [one for one in self._values[node.id] if one.lineno < line] or self._values[node.id]
            return self._resolved(max(before, key=lambda one: one.lineno), depth - 1)
        return node

    def _call(self, node: ast.expr | None) -> ast.Call | None:
        node = self._resolved(node)
        return node if isinstance(node, ast.Call) else None

    def _value(self, node: ast.expr | None) -> object:
        """A text, a number or a list as it is written; None for what is known only when it runs."""
        node = self._resolved(node)
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(one) for one in node.elts]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.path.join":
            given = [self._value(one) for one in node.args]
            return None if None in given else "/".join(map(str, given))
        try:
            return ast.literal_eval(node) if node is not None else None
        except ValueError:
            return None


def _project(job: _Job, space: dict[str, object], metric: str, goal: str) -> str:
    """The shell's words that write an MLproject: a search needs to know what may be drawn."""
    flags = {word.lstrip("-"): value for word, value in zip(job.words[::2], job.words[1::2], strict=False)}
    data = {name: value for name, value in flags.items() if value.startswith("{data_folder")}
    known = {name: value for name, value in flags.items() if name not in data}
    lines = ["entry_points:", "  main:", "    parameters:", *(f"      {value[1:-1]}: path" for value in data.values())]
    for name in {**known, **space}:
        value = known.get(name) or str(next(iter(next(iter(space[name].values())))))  # type: ignore[attr-defined]
        kind = "int" if re.fullmatch(r"-?\d+", value) else "float" if re.fullmatch(r"-?[\d.e-]+", value) else "string"
        lines.append(f"      {name.replace('-', '_')}: {{type: {kind}, default: {value}}}")
    words = [f"--{name} {value}" for name, value in data.items()]
    words += [f"--{name} {{{name.replace('-', '_')}}}" for name in {**known, **space}]
    lines += [f"    command: python {job.script} {' '.join(words)}", f"objective: {{metric: {metric}, goal: {goal}}}"]
    lines += ["search:", *(f"  {name.replace('-', '_')}: {json.dumps(one)}" for name, one in space.items())]
    return "\n".join([f"cat > {shlex.quote(f'{job.folder}/MLproject')} <<'END'", *lines, "END"])


def _here() -> tuple[str, str]:
    """This Python, as it can be called in this folder."""
    python = Path(sys.executable)
    return str(python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python), "-m"


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _shell(words: list[str]) -> str:
    return " ".join(word if re.fullmatch(r"[\w./=:{}+-]+", word) else shlex.quote(word) for word in words)


def source(path: Path) -> str:
    """The Python of a script, or of a notebook's cells without their magics; raises `ValueError`, `OSError`."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".ipynb":
        cells = [one for one in json.loads(text)["cells"] if one["cell_type"] == "code"]
        text = "\n".join("".join(one["source"]) for one in cells)
        text = re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.MULTILINE)
    return text


def main(words: list[str]) -> int:
    """Print what the file that the command line names comes to."""
    if len(words) != 1 or words[0].startswith("-"):
        sys.stdout.write(f"{__doc__}")
        return 0 if words in (["--help"], ["-h"]) else 2
    path = Path(words[0])
    try:
        found = Submission(ast.parse(source(path), str(path)), path.parent.absolute())
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        sys.stderr.write(f"{path} cannot be read as Python, or as a notebook: {error}\n")
        return 2
    sys.stdout.write("".join(f"{command}\n" for command in found.commands))
    sys.stderr.write("".join(f"# not translated: {what}\n" for what in found.left))
    if not found.commands:
        sys.stderr.write(f"# {path} submits no script that could be found: it was looked for {', '.join(_SCRIPTS)}.\n")
    return 0 if found.commands else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
