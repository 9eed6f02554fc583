"""Who may import whom; read from the source, for a rule that is only obeyed at run time is not one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tasks" / "programs" / "mnist"
RUNNER = ROOT / "infra" / "compute" / "runner"
SHIPPED = (PROGRAM, RUNNER)

LIGHT = {f"tasks.programs.mnist.digits.{module}" for module in ("hyperparameters", "dataset_files", "errors")}
"""What of the program the flow's process may import: declarations and file formats, no Keras."""


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, with relative names left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
    return found


def files(folder: str) -> list[Path]:
    found = sorted(path for path in (ROOT / folder).rglob("*.py") if not {*SHIPPED} & {*path.parents})
    assert found, f"there are no files in {folder}"
    return found


def top_levels(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files("infra"), ids=lambda path: path.name)
def test_infra_knows_neither_prefect_nor_tasks_nor_flows(path: Path) -> None:
    assert not top_levels(path) & {"prefect", "tasks", "flows"}


@pytest.mark.parametrize("path", files("tasks"), ids=lambda path: path.name)
def test_tasks_do_not_import_flows(path: Path) -> None:
    assert "flows" not in top_levels(path)


@pytest.mark.parametrize("path", files("flows") + files("tasks") + files("infra"), ids=lambda path: path.name)
def test_only_the_program_imports_keras_and_only_its_light_modules_are_imported(path: Path) -> None:
    # The service's process is the model's own.
    may = {"keras", "tensorflow"} if path == ROOT / "infra" / "service" / "network.py" else set()
    assert not top_levels(path) & {"keras", "tensorflow", "matplotlib"} - may
    assert {name for name in imports(path) if name.startswith("tasks.programs")} <= LIGHT


@pytest.mark.parametrize(
    "path", [path for folder in SHIPPED for path in sorted(folder.rglob("*.py"))], ids=lambda path: path.name
)
def test_what_is_shipped_imports_nothing_else_of_ours(path: Path) -> None:
    assert not top_levels(path) & {"prefect", "ray", "flows", "tasks", "infra"}


@pytest.mark.parametrize("path", files("flows") + files("tasks") + files("infra"), ids=lambda path: path.name)
def test_each_service_has_one_module(path: Path) -> None:
    homes = {
        # Who speaks to it, and who serves it.
        "mlflow": {"mlflow_connection.py", "experiment_tracker.py", "serve.py"},
        "s3fs": set(),
        "ray": {"ray_dashboard.py"},
        "optuna": {"sampling.py", "stopping.py"},
    }
    for library, home in homes.items():
        assert library not in top_levels(path) or path.name in home


@pytest.mark.parametrize("path", files("flows") + files("tasks") + files("infra"), ids=lambda path: path.name)
def test_only_settings_read_the_environment(path: Path) -> None:
    reads = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    touched = {node.attr for node in reads if isinstance(node.value, ast.Name) and node.value.id == "os"}
    may = ("settings.py", "process_environment.py", "proxies.py")
    # The launcher is given its environment by the order, and sets it.
    assert path.name in may or path.parent.name == "launcher" or not touched & {"environ", "getenv", "putenv"}


@pytest.mark.parametrize("path", files("tasks"), ids=lambda path: path.name)
def test_no_task_is_cached_by_prefect(path: Path) -> None:
    tasks = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in (call for call in tasks if isinstance(call.func, ast.Name) and call.func.id == "task"):
        assert "NO_CACHE" in [getattr(word.value, "id", "") for word in call.keywords if word.arg == "cache_policy"]


@pytest.mark.parametrize(("module", "more"), [("train_mnist", set()), ("serve", {"prefect"}), ("predict", {"prefect"})])
def test_importing_the_flow_loads_neither_tensorflow_nor_mlflow(module: str, more: set[str]) -> None:
    unwanted = {"tensorflow", "keras", "mlflow", "ray", "s3fs", *more}
    code = f"import sys, flows.{module}; print({unwanted} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
