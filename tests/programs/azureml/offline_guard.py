import joblib
from azureml.core import Dataset, Run, Workspace
from azureml.core.run import _OfflineRun
from sklearn.metrics import confusion_matrix
from sklearn.svm import SVC

run = Run.get_context()
if run.id.startswith("OfflineRun"):
    from azureml.core import Experiment

    ws = Workspace.from_config()
    run = Experiment(ws, "local").start_logging()
if isinstance(run, _OfflineRun):
    ws = Workspace.from_config()
else:
    ws = run.experiment.workspace
train, test = Dataset.get_by_name(ws, "points").random_split(percentage=0.75, seed=7)
train, test = train.to_pandas_dataframe(), test.to_pandas_dataframe()
model = SVC().fit(train[["a", "b"]], train["label"])
found = model.predict(test[["a", "b"]])
run.log("test rows", len(test))
matrix = {"class_labels": ["0", "1"], "matrix": confusion_matrix(test["label"], found).tolist()}
run.log_confusion_matrix(
    "Confusion matrix", {"schema_type": "confusion_matrix", "schema_version": "1.0.0", "data": matrix}
)
joblib.dump(model, "outputs/svc.joblib")
