"""What a search may try: how it is written, what of it is refused, and what is drawn from it."""

import math
from pathlib import Path

import pytest

from infra.errors import ArgumentError
from tasks.mnist_training import PROGRAM
from tasks.program import Parameter, Value, read_program
from tasks.search.sampling import Sampler, Sampling
from tasks.search.space import Space, drawn, grid, read_space
from tasks.search.trial import Trial
from tasks.yaml_values import read_yaml

PARAMETERS = (
    Parameter("data_folder", "path"),
    Parameter("epochs", "int", 5, minimum=1),
    Parameter("rate", "float", 0.1, minimum=0, maximum=1),
    Parameter("layers", "int", 1),
    Parameter("optimizer", "string", "sgd", choices=("sgd", "adam")),
    Parameter("momentum", "float", 0.0),
)
SPACE = """\
optimizer: {choices: [sgd, adam]}
rate: {loguniform: [1e-4, 1e-1]}
layers: {int: [1, 9], step: 2}
momentum: {uniform: [0, 0.9], step: 0.3, only_if: {optimizer: sgd}}
"""


def space_of(text: str, folder: Path) -> Space:
    (folder / "space.yaml").write_text(text)
    return read_space(read_yaml(folder / "space.yaml"), PARAMETERS)


def test_the_space_of_mnist_is_the_tutorials() -> None:
    program = read_program(PROGRAM)
    assert program.search
    sizes = {one.name: one.values for one in read_space(program.search, program.parameters)}
    assert sizes == {
        "batch_size": (25, 50, 100),
        "first_layer_neurons": (10, 50, 200, 300, 500),
        "second_layer_neurons": (10, 50, 200, 500),
        "learning_rate": (math.exp(-6), math.exp(-1)),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rate: {loguniform: [1e-4, 0.1]}\nlayer: {int: [1, 3]}",
            "space.yaml:2: layer is no parameter of the program.",
        ),
        (
            "rate: {uniform: [0.1, 2]}",
            "space.yaml:1: an entry of uniform of rate is '2', expected a number, at least 0",
        ),
        (
            "rate:\n  uniform: [0.5, 0.1]",
            "space.yaml:2: uniform of rate is [0.5, 0.1], expected the lower number first",
        ),
        ("rate: {loguniform: [0, 0.1]}", "has a logarithm above 0 only"),
        ("rate: {uniform: [0.1]}", "has 1 numbers, expected two"),
        ("rate: {uniform: [0, 1], choices: [1]}", "rate has choices and uniform, expected `choices"),
        ("rate: {}", "rate has nothing to be tried"),
        ("rate: {value: [1]}", "known are choices, uniform, loguniform, int, step, only_if"),
        ("rate: {loguniform: [0.1, 1], step: 0.1}", "only uniform and int have one"),
        ("layers: {uniform: [1, 3]}", "layers is of type int, of which uniform draws no value. Write int: [low, high]"),
        ("layers: {choices: [010, 2]}", "which is 8 to YAML"),
        ("layers: {choices: [1, 1]}", "not all different"),
        ("optimizer: {choices: [on]}", "which is 'True' to YAML"),
        ("optimizer: {choices: [adam, lion]}", "'lion', expected one of sgd, adam"),
        (
            "momentum: {uniform: [0, 1], only_if: {optimizer: sgd}}",
            "only_if names optimizer, which is not drawn above it",
        ),
        (
            "optimizer: {choices: [sgd]}\nrate: {uniform: [0, 1], only_if: {optimizer: adam}}",
            "one of the choices of opt",
        ),
        ("data_folder: {choices: [a]}", "data_folder is no parameter of the program"),
        ("{}", "the space of a search is empty"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as error:
        space_of(text, tmp_path)
    assert said in str(error.value)
    assert str(error.value).startswith("space.yaml:")


def test_a_number_that_yaml_takes_for_text_is_the_number(tmp_path: Path) -> None:
    (rate,) = space_of("rate: {loguniform: [1e-4, 1e-1]}", tmp_path)
    assert rate.values == (0.0001, 0.1)


def test_what_depends_on_another_is_drawn_beside_it_alone(tmp_path: Path) -> None:
    space = space_of(SPACE, tmp_path)
    sampling = Sampling(space, "random", 3, "maximize", {})
    proposed = [sampling.propose(number, ()) for number in range(1, 60)]
    for values in proposed:
        assert values is not None
        assert ("momentum" in values) == (values["optimizer"] == "sgd")
        assert drawn(space, values) == values
        assert all(one.holds(values[one.name]) for one in space if one.name in values)
    assert {values["layers"] for values in proposed if values} == {1, 3, 5, 7, 9}
    assert {round(float(values["momentum"]), 9) for values in proposed if values and "momentum" in values} == {
        0,
        0.3,
        0.6,
        0.9,
    }


def test_a_grid_has_every_combination_once_and_ends(tmp_path: Path) -> None:
    space = space_of("optimizer: {choices: [sgd, adam]}\nlayers: {int: [1, 3], only_if: {optimizer: sgd}}", tmp_path)
    first: dict[str, Value] = {"optimizer": "sgd", "layers": 2, "epochs": 5}
    sampling = Sampling(space, "grid", 0, "maximize", first)
    proposed = [sampling.propose(number, ()) for number in range(5)]
    assert proposed[0] == {"optimizer": "sgd", "layers": 2}
    assert proposed[4] is None
    assert sorted(map(str, proposed[:4])) == sorted(map(str, grid(space)))
    other = Sampling(space, "grid", 1, "maximize", first)
    assert [other.propose(number, ()) for number in range(4)] != proposed[:4]
    with pytest.raises(ArgumentError, match="A grid has no end of values for rate"):
        grid(space_of("rate: {uniform: [0, 1]}", tmp_path))


def history(sampling: Sampling, count: int) -> list[Trial]:
    """A search on a cheap objective, one trial after another."""
    trials: list[Trial] = []
    for number in range(count):
        values = sampling.propose(number, trials)
        assert values is not None
        rate = float(values["rate"])
        trials.append(Trial(number, values, (-abs(math.log10(rate) + 2),), "finished"))
    return trials


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_follows_from_seed_number_and_what_it_sees(sampler: Sampler, tmp_path: Path) -> None:
    space = space_of("rate: {loguniform: [1e-4, 1]}\noptimizer: {choices: [sgd, adam]}", tmp_path)
    sampling = Sampling(space, sampler, 7, "maximize", {"rate": 0.1, "optimizer": "sgd"})
    trials = history(sampling, 24)
    assert [trial.parameters for trial in history(sampling, 24)] == [trial.parameters for trial in trials]
    # Asked alone, with what it may see, as after a kill.
    assert sampling.propose(20, trials[:20]) == trials[20].parameters
    others = history(Sampling(space, sampler, 8, "maximize", sampling.first), 24)
    assert [trial.parameters for trial in others][1:] != [trial.parameters for trial in trials][1:]
    worse = [Trial(one.number, one.parameters, (-one.values[0],), one.status) for one in trials[:20]]
    assert (sampling.propose(20, worse) == trials[20].parameters) == (sampler == "random")


def test_tpe_learns_and_takes_what_no_draw_gives_for_no_lesson(tmp_path: Path) -> None:
    space = space_of("rate: {loguniform: [1e-4, 1]}", tmp_path)
    # The first trial, the program's default, lies outside; one has no finite value, one is running, one failed.
    sampling = Sampling(space, "tpe", 1, "maximize", {"rate": 2.0})
    trials = history(sampling, 30)
    far = [abs(math.log10(float(trial.parameters["rate"])) + 2) for trial in trials]
    assert sum(far[20:]) < 0.7 * sum(far[1:11])
    odd = [
        *trials[:20],
        Trial(20, {"rate": 0.5}, (math.nan, math.inf), "finished"),
        Trial(21, {"rate": 0.5}),
        Trial(22, {"rate": 0.5}, (), "failed"),
        Trial(23, {"rate": 0.5}, (math.nan,), "stopped"),
    ]
    assert sampling.propose(24, odd) is not None
