"""A person's program: its MLproject as MLflow reads it and more, its arguments, its requirements and its files."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from infra.errors import ArgumentError, ProgramInvalid
from tasks.program import Objective, Program, read_program
from tasks.program_command import command_words
from tasks.program_files import MOST_FILES

MLPROJECT = """\
name: fashion
python_env: python_env.yaml
objective: {metric: val_accuracy, goal: maximize}
continues: exact
key_packages: [numpy]
search: {epochs: {int: [1, 3]}}
entry_points:
  main:
    parameters:
      data_folder: path
      learning_rate: {type: float, default: 1e-4, min: 0, max: 1, description: Of Adam.}
      epochs: {type: int, default: 5, min: 1}
      activation: {default: relu, choices: [relu, gelu]}
      augment: {type: bool, default: on}
      note: string
    command: "python train.py --lr {learning_rate} --epochs {epochs} -a {activation} {augment} {note} {data_folder}/x"
  score:
    command: python score.py
"""


def folder_of(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    needs = "python: 3.10\ndependencies:\n  - -r needs/all.txt\n  - scikit-learn\n"
    files = {"MLproject": MLPROJECT, "train.py": "", "score.py": "", "python_env.yaml": needs}
    return folder_of(tmp_path / "fashion", {**files, "needs/all.txt": "numpy>=2, \\\n  <3  # of old\n\npandas\n"})


Read = Callable[..., Program]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a program whose entry point has this command and these lines for parameters."""

    def read(command: str, parameters: str = "", **files: str) -> Program:
        declared = "".join(f"      {line}\n" for line in parameters.splitlines())
        text = f"entry_points:\n  main:\n    command: '{command}'\n" + (
            f"    parameters:\n{declared}" if declared else ""
        )
        return read_program(folder_of(tmp_path / "program", {"MLproject": text, "train.py": "", **files}))

    return read


def test_an_mlproject_is_read_with_what_mlflow_ignores_in_it(fashion: Path) -> None:
    program = read_program(fashion)
    assert (program.name, program.objective) == ("fashion", Objective("val_accuracy", "maximize"))
    assert (program.continues, program.key_packages) == ("exact", ("numpy",))
    assert program.search is not None
    assert program.search.data == {"epochs": {"int": [1, 3]}}
    assert program.import_ahead is None
    project = fashion / "MLproject"
    project.write_text(project.read_text() + "import_ahead: [train, numpy.linalg]\n")
    assert read_program(fashion).import_ahead == ("train", "numpy.linalg")
    # 3.10 is a number to YAML, and 1e-4 a text.
    assert (program.python, program.requirements) == ("3.10", ("numpy<3,>=2", "pandas", "scikit-learn"))
    assert program.score is not None
    assert program.score.command == "python score.py"
    arguments = program.check({"note": "it's {new} $HOME", "learning_rate": "1e-2"}, (), ["clothes"])
    assert arguments.command == (
        *("python", "train.py", "--lr", "0.01", "--epochs", "5", "-a", "relu", "True"),
        *("it's {new} $HOME", "{data_folder}/x"),
    )
    assert arguments.parameters["learning_rate"] == 0.01
    assert arguments.warnings == ()
    assert program.check({"note": ""}, (), ["c"]).parameters["learning_rate"] == 0.0001


def test_mlflow_itself_understands_the_same_file(fashion: Path) -> None:
    from mlflow.projects._project_spec import load_project

    (fashion / "python_env.yaml").write_text("python: '3.10'\n")
    command = (
        load_project(str(fashion))
        .get_entry_point("main")
        .compute_command({"note": "a b", "data_folder": "/data"}, None)
    )
    ours = read_program(fashion).check({"note": "a b"}, (), ["c"]).command
    theirs = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    # 1e-4 as it was written, where a training's key has one text for one number.
    assert theirs.stdout.replace("1e-4", "0.0001").splitlines() == [
        word.replace("{data_folder}", "/data") for word in ours
    ]


@pytest.mark.parametrize(
    ("given", "arguments", "datasets", "said"),
    [
        ({"note": "", "epochs": "0"}, (), ["c"], "--param epochs=0: expected a whole number, at least 1"),
        ({"note": "", "epochs": "2.5"}, (), ["c"], "epochs=2.5: expected a whole number"),
        (
            {"note": "", "learning_rate": "nan"},
            (),
            ["c"],
            "learning_rate=nan: expected a number, at least 0, at most 1",
        ),
        ({"note": "", "activation": "tanh"}, (), ["c"], "expected one of relu, gelu"),
        ({"note": "", "augment": "maybe"}, (), ["c"], "expected true or false"),
        ({"note": "", "learning_rat": "1"}, (), ["c"], "no such parameter. Did you mean learning_rate?"),
        ({"note": "{data_folder}"}, (), ["c"], "note is {data_folder}: the folder of the data"),
        ({"note": "", "data_folder": "/d"}, (), ["c"], "which is given with --data"),
        ({}, (), ["c"], "note is missing: give it with --param note=..., text"),
        ({"note": ""}, (), [], "{data_folder} needs data, and none is given: --data FOLDER"),
        ({"note": ""}, ("--epochs", "3"), ["c"], "whose command takes parameters only"),
    ],
)
def test_what_the_program_cannot_be_started_with_is_refused_by_name(
    fashion: Path, given: dict[str, str], arguments: tuple[str, ...], datasets: list[str], said: str
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(said)):
        read_program(fashion).check(given, arguments, datasets)


def test_all_that_is_wrong_is_said_at_once(fashion: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_program(fashion).check({"epochs": "x", "foo": "1"}, (), [])
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("min: 0", "min: none", "MLproject:11: min of learning_rate of main is 'none', expected a number."),
        ("min: 0", "minimum: 0", "known are type, default, min, max, choices, description. Did you mean min?"),
        (
            "type: float",
            "type: flaot",
            "is 'flaot', expected a type: string, float, int, bool, path, uri. Did you mean float",
        ),
        ("type: int", "type: integer", "Did you mean int?"),
        ("default: 5,", "default: 0,", "MLproject:12: default of epochs of main is '0'"),
        ("default: 5,", "default: 010,", "which is 8 to YAML, for it begins with 0.\nWrite 10 or 8"),
        ("default: 5,", "default: [5],", "is a list, expected a whole number, at least 1"),
        ("min: 1}", "min: 1, max: 0}", "min of epochs is 1, above its max, 0"),
        ("default: relu", "default: on", "which is 'True' to YAML and so to MLflow"),
        ("default: relu", "default: tanh", "is 'tanh', expected one of relu, gelu"),
        ("choices: [relu, gelu]", "choices: []", "is a list, expected a list such as [relu, gelu], and not an empty"),
        ("default: on", "default: on, min: 0", "only a number has bounds"),
        ("      epochs:", "      learning_rate:", "stands twice"),
        ("data_folder: path", "data_folder: string", "is the folder of a data set, and its type is string"),
        ("data_folder: path", "data: path", "Declare it among its parameters"),
        ("{note} ", "{not} ", "has {not}, which is none of its parameters. Did you mean note?"),
        ("{note}", "{note", "cannot be read: unexpected '{' in field name"),
        ("{note}", "{note:5}", "cannot be read"),
        ("python train.py", "python trian.py", "runs trian.py, which is not in the folder. Did you mean train.py?"),
        ("python train.py", "python '", "cannot be split into words: No closing quotation"),
        ("goal: maximize", "goal: max", "expected maximize or minimize. Did you mean maximize?"),
        (", goal: maximize", "", "objective lacks goal"),
        ("continues: exact", "continues: epoch", "continues is 'epoch', expected exact"),
        ("continues: exact", "import_ahead: numpy", "expected a list of modules such as [package.module]"),
        ("continues: exact", "import_ahead: [train.py x]", "names 'train.py x', which is no module's name"),
        ("continues: exact", "import_ahead: [train.ahead]", "and there is no train/ahead.py in the folder"),
        ("continues:", "continue:", "Did you mean continues?"),
        ("entry_points:", "entrypoints:", "Did you mean entry_points?"),
        ("python_env:", "docker_env:", "docker_env cannot be served here"),
        ("  main:", "  man:", "has no entry point main; it has man, score"),
        ("name: fashion", "name: [fashion", "MLproject:2: this is no YAML"),
        ("name: fashion", "\tname: fashion", "YAML takes no tabs"),
        ("python_env.yaml", "../python_env.yaml", "lies outside the program's folder"),
        ("python_env.yaml", "environment.yaml", "there is no such file"),
    ],
)
def test_what_is_wrong_in_an_mlproject_is_refused_with_its_place(fashion: Path, old: str, new: str, said: str) -> None:
    assert old in MLPROJECT
    (fashion / "MLproject").write_text(MLPROJECT.replace(old, new, 1))
    with pytest.raises((ProgramInvalid, ArgumentError), match=re.escape(said)):
        read_program(fashion)


def test_a_value_is_one_word_whatever_shell_and_quotes_there_are(read: Read, tmp_path: Path) -> None:
    value = """it's a "$HOME" `id` \\ * ; #"""
    for command in (
        "printf %s {v}",
        'printf %s "{v}"',
        "X=1 printf %s {v}",
        'X=1 printf %s "{v}" | cat',
        r"printf %s a\ {{{v}}} && true",
    ):
        words = read(command, "v: string").check({"v": value}, (), []).command
        assert ("bash" in words) == bool(re.search("[=|&]", command))
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout in (value, f"a {{{value}}}"), command
    for command, needs in (
        (r"""a "it's $x" 'y'""", True),
        (r"""a "it's" '$x' \$y""", False),
        ("a ~/b", True),
        ("a b~", False),
    ):
        assert (command_words(command, {})[0] == "bash") == needs, command
    shell = read("cd src && python train.py {data_folder}", "data_folder: path").check({}, (), ["my data"])
    assert shell.command == ("bash", "-c", 'cd src && python train.py "${1}"', "bash", "{data_folder}")
    assert "its epochs are not seen" in shell.warnings[0]
    assert read("python3 -u train.py").check({}, (), []).command == ("python", "train.py")
    assert read("python train.py --n {n}", "n: {type: float, default: 5}").check({}, (), []).command[-1] == "5"


def test_paths_and_addresses(read: Read) -> None:
    program = read("python train.py {p} {u}", "p: path\nu: {type: uri, default: s3://a/b}", **{"lib/a.txt": ""})
    assert program.check({"p": "lib"}, (), []).command[2:] == ("lib", "s3://a/b")
    with pytest.raises(ArgumentError, match="p is /etc, expected a file or folder of the program"):
        program.check({"p": "/etc"}, (), [])
    with pytest.raises(ArgumentError, match="expected an address"):
        program.check({"p": "lib", "u": "b"}, (), [])
    unused = read("python train.py", "p: {default: x}")
    with pytest.raises(ArgumentError, match="does not use it"):
        unused.check({"p": "y"}, (), [])


def test_a_script_gets_what_follows_as_it_stands(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "old script", {"src/train.py": "", "notes.txt": "", "data/a": "", "run.sh": ""})
    program = read_program(folder, "./src/train.py")
    assert (program.entry, program.name, program.command) == ("src/train.py", "old script", None)
    words = ("--data", "{data_folder}/a b", "{data_folder_test}", "w.{epoch:02d}.keras", "{{x}}", "")
    arguments = program.check({}, words, ["train", "test", "more"])
    assert arguments.command == ("python", "src/train.py", *words[:4], "{x}", "")
    assert arguments.warnings == (
        "The data set more is given, and the command has no {data_folder_more}: nothing leads to it.",
    )
    assert "its epochs are not seen" in read_program(folder, "run.sh").check({}, (), []).warnings[0]
    for word, said in (
        ("{data_foldr}", "{data_foldr} stands for nothing. Did you mean data_folder?"),
        ("{data_folder_tset}", "needs a data set tset, and given are test. Did you mean test?"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(said)):
            program.check({}, (word,), ["test"])
    with pytest.raises(ArgumentError, match="none is given: --data FOLDER"):
        program.check({}, ("{data_folder}",), [])
    with pytest.raises(ArgumentError, match="-- --epochs"):
        program.check({"epochs": "1"}, (), [])
    for inside in (folder / "data", tmp_path):
        with pytest.raises(ArgumentError, match="the program's folder"):
            program.refuse_data_inside(inside)
    program.refuse_data_inside(tmp_path / "old")


def test_what_is_no_script_is_refused_with_what_there_is(tmp_path: Path, fashion: Path) -> None:
    folder = folder_of(
        tmp_path / "p", {"src/train.py": "", "n.ipynb": "", "a.txt": "", ".gitignore": "gen.py\n", "gen.py": ""}
    )
    for entry, said in (
        (None, "no script was named.\nName one: --entry SCRIPT. It has src/train.py."),
        ("train.py", "There is no train.py in"),
        ("tain.py", "Did you mean src/train.py?"),
        ("src", "is a folder"),
        ("a.txt", "is no script"),
        ("n.ipynb", "jupyter nbconvert --to script n.ipynb"),
        ("gen.py", "gen.py is left out, for .gitignore names it. To have it all the same: !gen.py in .programignore"),
        ("/etc/passwd", "There is no /etc/passwd"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(said)):
            read_program(folder, entry)
    with pytest.raises(ArgumentError, match="is not there"):
        read_program(tmp_path / "nowhere")
    # An entry point by its name comes before a script, as `mlflow run -e` has it.
    assert read_program(fashion, "score").command == "python score.py"
    assert read_program(fashion, "train.py").entry == "train.py"
    with pytest.raises(ArgumentError, match="Entry points of its MLproject: main, score"):
        read_program(fashion, "mian")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("conda.yaml", "dependencies: [python=3.11.4, pip, {pip: [keras==3.15.1]}]", (("keras==3.15.1",), "3.11")),
        (
            "conda.yaml",
            "dependencies: [python>=3.9, numpy, cudatoolkit=11]",
            "conda.yaml:1: only conda has numpy, cudatoolkit=11",
        ),
        ("conda.yaml", "dependencies: [python<3]", f"Python <3 is asked for, and this is {platform.python_version()}"),
        ("python_env.yaml", "python: '3.12.*'\nbuild_dependencies: [pip==23]", ((), "3.12")),
        ("python_env.yaml", "dependency: [a]", "Did you mean dependencies?"),
        ("python_env.yaml", "dependencies: [-r a.txt]", "python_env.yaml:1 names a.txt, and there is no such file"),
        ("python_env.yaml", "python: three", "expected a version of Python such as 3.11"),
        ("requirements.txt", "numpy\n# all\nno such: x", "requirements.txt:3: 'no such: x' is no requirement"),
        ("requirements.txt", "numpy\n-e .", "requirements.txt:2: -e is no package"),
        ("requirements.txt", "numpy==2 \\\n --hash=sha256:00", "requirements.txt:1: hashes are not taken over"),
        ("requirements.txt", "-r requirements.txt", "requirements.txt names itself"),
        ("requirements.txt", "\ufeffnumpy ; python_version > '3'", (('numpy; python_version > "3"',), None)),
        ("notes.txt", "", (None, None)),
    ],
)
def test_requirements(tmp_path: Path, name: str, text: str, expected: str | tuple[object, object]) -> None:
    folder = folder_of(tmp_path, {name: text, "train.py": ""})
    if isinstance(expected, str):
        with pytest.raises(ProgramInvalid, match=re.escape(expected)):
            read_program(folder, "train.py")
    else:
        program = read_program(folder, "train.py")
        assert (program.requirements, program.python) == expected


def test_the_files_are_those_that_git_would_keep_without_results_and_environments(tmp_path: Path) -> None:
    kept = {"train.py": "1", "lib/model.py": "2", "lib/outputs/a.py": "3", "build/keep.txt": "4", "w.h5": "5"}
    left = {
        "lib/b.h5",
        "build/x.o",
        ".env",
        "outputs/model.keras",
        "mlruns/0/meta.yaml",
        "venv/lib/a.py",
        "model/MLmodel",
        "model/model_files.json",
        "a.py~",
        "n/x.log",
    }
    rules = {".gitignore": "*.h5\nbuild/*\n!build/keep.txt\n", ".programignore": "!/w.h5\n", "n/.gitignore": "*\n"}
    folder = folder_of(tmp_path / "p", {**kept, **rules, **dict.fromkeys(left, "x"), "venv/pyvenv.cfg": ""})
    folder_of(folder, {"__pycache__/a.pyc": "", ".git/HEAD": ""})
    (folder / "link.py").symlink_to("lib/model.py")
    (folder / "also").symlink_to("lib")
    (folder / "venv" / "python").symlink_to("/bin/sh")
    program = read_program(folder, "train.py")
    assert set(program.names) == {*kept, "link.py", "also/model.py", "also/outputs/a.py"}
    assert dict(program.left_out) == {
        "lib/b.h5": ".gitignore names it",
        "build/x.o": ".gitignore names it",
        ".env": "its name begins with a dot",
        "outputs/": "it holds results of runs",
        "mlruns/": "it holds results of runs",
        "venv/": "it is a Python environment",
        "model/": "it is a model that a run delivered",
        "a.py~": "its name is one of *~",
        "n/x.log": "n/.gitignore names it",
        "also/b.h5": ".gitignore names it",
    }


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", {"train.py": "", "lib/a.py": ""})
    for target, said in (("/etc/hostname", "which lies outside it"), ("gone", "not there"), ("..", "without an end")):
        (folder / "lib" / "link").symlink_to(target)
        with pytest.raises(ProgramInvalid, match=f"lib/link .*{said}"):
            read_program(folder, "train.py")
        (folder / ".programignore").write_text("link\n")
        read_program(folder, "train.py")
        (folder / ".programignore").unlink()
        (folder / "lib" / "link").unlink()
    folder_of(folder, {"a/a.py": "", "b/b.py": ""})
    (folder / "a" / "b").symlink_to("../b")
    (folder / "b" / "a").symlink_to("../a")
    with pytest.raises(ProgramInvalid, match=r"a/b/a .*without an end"):
        read_program(folder, "train.py")
    (folder / "b" / "a").unlink()
    os.mkfifo(folder / "pipe")
    assert read_program(folder, "train.py").left_out == (("pipe", "it is no regular file"),)


def test_too_much_is_refused_with_the_largest_and_the_most_is_read_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"train.py": "", ".gitignore": "*.log\n/data/\n"})
    for number in range(MOST_FILES - 1):
        path = folder / f"part{number % 7}" / f"{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    begun = time.process_time()
    assert len(read_program(folder, "train.py").files) == MOST_FILES
    assert time.process_time() - begun < 1
    (folder / "more.py").touch()
    with pytest.raises(ProgramInvalid, match=r"2,001 files of .*\nThe largest: part0/ \(286 files\)"):
        read_program(folder, "train.py")
    with (folder / "big.npy").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(ProgramInvalid, match=r"The largest: big.npy \(60 MB\).*\n.*--data"):
        read_program(folder, "train.py")
