"""What in a program's sources will not do what was meant: found by reading them, told before anything is paid for."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

_VARIABLES = ("TF_", "TF2_", "KERAS_", "XLA_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_")
"""How the names of those variables begin that computing libraries read as they are imported."""

_FETCHES = re.compile(
    r"keras\.datasets\.\w+\.load_data|keras\.utils\.(data_utils\.)?get_file|tensorflow_datasets\.(load|builder)"
    r"|urllib\.request\.(urlopen|urlretrieve)|(requests|httpx)\.(get|post|request|stream)|datasets\.load_dataset"
    r"|sklearn\.datasets\.fetch_\w+|(kagglehub|huggingface_hub)\.\w*download|(wget|gdown)\.\w*download\w*"
)
_OPTIMIZERS = {"SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl"}
_MONITORS = {"EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"}
_FITS = {"fit", "evaluate", "predict"}

_METHODS_GONE = {
    "predict_classes": "model.predict(x).argmax(axis=-1)",
    "fit_generator": "model.fit",
    "evaluate_generator": "model.evaluate",
    "predict_generator": "model.predict",
}
_MODULES_GONE = {
    "keras.utils.np_utils": "keras.utils",
    "keras.engine": "keras",
    "keras.engine.topology": "keras.layers",
    "keras.wrappers.scikit_learn": "keras.wrappers",
    "keras.backend.tensorflow_backend": "keras.backend",
    "keras.layers.core": "keras.layers",
    "keras.layers.convolutional": "keras.layers",
    "keras.layers.recurrent": "keras.layers",
    "keras.layers.normalization": "keras.layers",
    "keras.layers.advanced_activations": "keras.layers",
}
_ARGUMENTS_OF_KERAS_1 = {"nb_epoch", "samples_per_epoch", "nb_val_samples"}

_MODEL_SUFFIXES = {"", ".keras", ".h5", ".hdf5", ".tf", ".pb", ".pkl", ".pickle", ".joblib"}


@dataclass(frozen=True, order=True)
class Finding:
    """Something in a source file."""

    file: str
    """Relative to the program's folder."""
    line: int
    text: str
    spelling: str = field(default="", compare=False)
    """The row of `old_spellings.toml` that it is of, if it is of one."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass
class Habits:
    """What a program's sources do."""

    sets_variables: dict[str, str] = field(default_factory=dict)
    """Variables of computing libraries that they set, with the places; `*` where the name is not known."""
    fetches_data: list[Finding] = field(default_factory=list)
    keras2_idioms: list[Finding] = field(default_factory=list)
    saves_elsewhere: list[Finding] = field(default_factory=list)
    saves: bool = False
    """True if anything in them saves a model, wherever."""
    saves_where_looked: bool = False
    """True if something in them names the place, or hands the model to MLflow."""
    metrics: set[str] = field(default_factory=set)
    """Names that `compile` is given."""


def read_habits(trees: Mapping[str, ast.Module], keras: bool) -> Habits:
    """What the sources do, by the names of their files; `keras`: they use Keras 3."""
    habits = Habits()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "metrics" and isinstance(node.value, ast.List | ast.Tuple):
                habits.metrics |= {str(item.value) for item in node.value.elts if isinstance(item, ast.Constant)}
    for name, tree in trees.items():
        reader = _Reader(name, tree, habits)
        for node in ast.walk(tree):
            reader.read(node)
            if keras:
                reader.read_keras(node)
    if habits.saves_where_looked:
        habits.saves_elsewhere.clear()
    elif keras and not habits.saves and trees:
        text = 'nothing in it saves a model, and a training without one fails: model.save("outputs/model.keras")'
        habits.saves_elsewhere.append(Finding(next(iter(trees)), 1, text))
    return habits


class _Reader:
    """One source file."""

    def __init__(self, name: str, tree: ast.Module, habits: Habits) -> None:
        self.name = name
        self.habits = habits
        self.imported: dict[str, str] = {}
        """Names in the file that stand for modules or what is in them, with the full names."""
        self.texts: dict[str, str] = {}
        """Names that stand for a text."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self.imported[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                if full := self.full_name(node.value):
                    self.imported[node.targets[0].id] = full
                elif text := self.text(node.value):
                    self.texts[node.targets[0].id] = text

    def full_name(self, node: ast.AST) -> str:
        """The full name of what was imported; empty for anything else."""
        if isinstance(node, ast.Name):
            name = self.imported.get(node.id, "")
        elif isinstance(node, ast.Attribute) and (base := self.full_name(node.value)):
            name = f"{base}.{node.attr}"
        else:
            return ""
        return re.sub(r"^tensorflow\.(python\.)?keras\b", "keras", name)

    def text(self, node: ast.AST | None) -> str:
        """The text that an expression gives, `{}` in it where that is not known; empty if nothing of it is."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.Name):
            return self.texts.get(node.id, "")
        if isinstance(node, ast.JoinedStr):
            return "".join(self.text(part) or "{}" for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Add):
            left, right = self.text(node.left), self.text(node.right) or "{}"
            return left and f"{left}{'/' if isinstance(node.op, ast.Div) else ''}{right}"
        if isinstance(node, ast.Call) and self.full_name(node.func) in (
            "os.path.join",
            "pathlib.Path",
            "pathlib.PurePath",
        ):
            parts = [self.text(part) or "{}" for part in node.args]
            return "" if not parts or parts[0] == "{}" else "/".join(parts)
        return ""

    def finding(self, node: ast.AST, text: str) -> Finding:
        return Finding(self.name, getattr(node, "lineno", 1), text)

    def read(self, node: ast.AST) -> None:
        """Take down what holds for any program."""
        for variable in self._variables(node):
            if variable == "*" or variable.startswith(_VARIABLES):
                self.habits.sets_variables.setdefault(variable, f"{self.name}:{getattr(node, 'lineno', 1)}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value == "OUTPUTS_FOLDER" or PurePosixPath(node.value).parts[:1] == ("outputs",)
            self.habits.saves_where_looked |= named
        if not isinstance(node, ast.Call):
            return
        name = self.full_name(node.func)
        if _FETCHES.fullmatch(name) or (name.startswith("pandas.read_") and "://" in self.text(_argument(node, 0))):
            self._fetches(node, f"{name} fetches data by itself")
        elif re.fullmatch(r"keras\.applications\.(\w+\.)?[A-Z]\w+", name) and not _is_none(_keyword(node, "weights")):
            self._fetches(node, f"{name} fetches weights by itself, unless weights=None or a file is given")
        if name.startswith("mlflow.") and name.endswith((".log_model", ".save_model", "autolog")):
            self.habits.saves_where_looked = True
        self._saves(node, name)

    def _fetches(self, node: ast.AST, what: str) -> None:
        text = f"{what}: the training's key does not know what. Give it with --data, so that it is known and kept."
        self.habits.fetches_data.append(self.finding(node, text))

    def _variables(self, node: ast.AST) -> Iterator[str]:
        """The names of the environment variables that a statement or a call sets or removes."""
        if isinstance(node, ast.Assign | ast.Delete | ast.AugAssign):
            for target in [node.target] if isinstance(node, ast.AugAssign) else node.targets:
                if isinstance(target, ast.Subscript) and self.full_name(target.value) == "os.environ":
                    yield self.text(target.slice) or "*"
                elif self.full_name(target) == "os.environ" and isinstance(node, ast.AugAssign):
                    yield from self._keys(node.value)
        if isinstance(node, ast.Call):
            name = self.full_name(node.func)
            if name in ("os.environ.setdefault", "os.environ.pop", "os.putenv", "os.unsetenv"):
                yield self.text(_argument(node, 0)) or "*"
            elif name == "os.environ.update":
                yield from (keyword.arg or "*" for keyword in node.keywords)
                for argument in node.args:
                    yield from self._keys(argument)
            elif name.endswith("load_dotenv"):
                yield "*"

    def _keys(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Dict):
            yield from (self.text(key) or "*" for key in node.keys)
        else:
            yield "*"

    def _saves(self, call: ast.Call, name: str) -> None:
        """Take down where a call saves a model, if it does."""
        method = call.func.attr if isinstance(call.func, ast.Attribute) and not name else ""
        if method in ("save", "export"):
            path = _argument(call, 0, "filepath")
        elif name.endswith(".save_model") or name in ("joblib.dump", "tensorflow.saved_model.save"):
            path = _argument(call, 1, "filepath")
        elif name.endswith(".ModelCheckpoint") and _is_false(_keyword(call, "save_weights_only")):
            path = _argument(call, 0, "filepath")
        else:
            # Weights and pickles may be the model; where they go is not judged.
            self.habits.saves |= method in ("save_weights", "to_json") or name == "pickle.dump"
            return
        text = self.text(path)
        if text and PurePosixPath(text).suffix not in _MODEL_SUFFIXES:
            return
        self.habits.saves = True
        place = PurePosixPath(text)
        if text and place.parts[:1] not in (("outputs",), ("{}",)):
            instead = f"outputs/{place.stem or 'model'}.keras" if place.suffix != ".h5" else f"outputs/{place.name}"
            told = f"a model is saved as {text}, where nothing looks for it. Save it as {instead}."
            self.habits.saves_elsewhere.append(self.finding(call, told))

    def read_keras(self, node: ast.AST) -> None:
        """Take down what Keras 2 or 1 took, and Keras 3 does not."""
        if isinstance(node, ast.ImportFrom | ast.Import):
            for module in self._modules(node):
                if instead := _MODULES_GONE.get(module):
                    self._idiom(node, f"Keras 3 has no module {module}", f"import from {instead}", module)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
            key = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if node.value.attr == "history" and isinstance(key, str):
                self._metric(node, key, "it is a KeyError")
            elif node.value.attr == "metrics_names" and key == 1:
                self._idiom(
                    node, "metrics_names[1] is compile_metrics in Keras 3", "model.evaluate(..., return_dict=True)"
                )
        elif isinstance(node, ast.Call):
            self._call(node)

    def _modules(self, node: ast.ImportFrom | ast.Import) -> set[str]:
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            names = {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        return {re.sub(r"^tensorflow\.(python\.)?keras\b", "keras", name) for name in names}

    def _idiom(self, node: ast.AST, text: str, instead: str, spelling: str = "") -> None:
        found = self.finding(node, f"{text}. Write {instead}.")
        self.habits.keras2_idioms.append(replace(found, spelling=spelling))

    def _metric(self, node: ast.AST, name: str, follows: str = "nothing happens by it") -> None:
        short = name.removeprefix("val_")
        if short == "acc" and "acc" not in self.habits.metrics:
            instead = name.replace("acc", "accuracy")
            self._idiom(node, f"Keras 3 calls no metric {name!r}, and {follows}", repr(instead), "acc")

    def _call(self, call: ast.Call) -> None:
        name = self.full_name(call.func)
        method = call.func.attr if isinstance(call.func, ast.Attribute) and not name else ""
        last = name.rpartition(".")[2]
        keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
        if last in _OPTIMIZERS and "lr" in keywords:
            self._idiom(call, f"{last} takes no lr=", "learning_rate=", "lr=")
        if last in _OPTIMIZERS and "decay" in keywords:
            self._idiom(call, f"{last} ignores decay=", "a schedule of keras.optimizers.schedules as learning_rate=")
        if method in _METHODS_GONE:
            self._idiom(call, f"Keras 3 has no {method}", _METHODS_GONE[method], method)
        if gone := sorted(_ARGUMENTS_OF_KERAS_1 & keywords):
            text = f"{', '.join(gone)}: of Keras 1, and what today's arguments count is something else"
            self._idiom(call, text, "epochs= and steps_per_epoch=, in batches")
        if method in _FITS and (gone := sorted({"workers", "use_multiprocessing", "max_queue_size"} & keywords)):
            text = f"{method} takes no {', '.join(gone)}"
            self._idiom(call, text, "them where the keras.utils.PyDataset is made", "workers=")
        if last in _MONITORS:
            self._metric(call, self.text(_keyword(call, "monitor")))
        if last == "EarlyStopping" and call.args:
            self._metric(call, self.text(call.args[0]))
        self._path_of(call, method, last, keywords)

    def _path_of(self, call: ast.Call, method: str, last: str, keywords: set[str]) -> None:
        """Names of files that Keras 3 refuses, mostly at the very end of a training."""
        if "save_format" in keywords and (method in ("save", "save_weights") or last == "save_model"):
            self._idiom(call, "save_format= is refused", "a name that ends in .keras, and leave it out")
        path = self.text(_argument(call, 1 if last == "save_model" else 0, "filepath"))
        if not path:
            return
        suffix = PurePosixPath(path).suffix
        weights_only = last == "ModelCheckpoint" and not _is_false(_keyword(call, "save_weights_only"))
        if (method == "save_weights" or weights_only) and not path.endswith(".weights.h5"):
            spelling = "save_weights('x.h5')" if suffix in (".h5", ".hdf5") else ""
            text = f"weights are saved as NAME.weights.h5 alone, and not as {path}"
            self._idiom(call, text, repr("NAME.weights.h5"), spelling)
        elif last == "ModelCheckpoint" and not weights_only and suffix not in (".keras", ".h5"):
            spelling = "ModelCheckpoint('x.hdf5')" if suffix == ".hdf5" else ""
            self._idiom(call, f"Keras 3 saves no model as {path}", "a name that ends in .keras", spelling)
        elif (method == "save" or last == "save_model") and suffix in ("", ".tf"):
            self._idiom(call, f"Keras 3 saves no model as a folder, such as {path}", "a name that ends in .keras")


def _argument(call: ast.Call, position: int, keyword: str = "") -> ast.expr | None:
    if position < len(call.args):
        return call.args[position]
    return _keyword(call, keyword) if keyword else None


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_false(node: ast.expr | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and not node.value)
