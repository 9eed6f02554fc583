import pickle

from azureml.core import Dataset, Run
from sklearn.tree import DecisionTreeClassifier

run = Run.get_context()
ws = run.experiment.workspace
points = Dataset.get_by_name(ws, name="points").to_pandas_dataframe()
best = None
for depth in (1, 2, 3):
    with run.child_run(name="depth {}".format(depth)) as child:
        model = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(points[["a", "b"]], points["label"])
        score = model.score(points[["a", "b"]], points["label"])
        child.log("depth", depth)
        child.log("accuracy", score)
        run.log_row("depths", depth=depth, accuracy=score)
        best = max(best or (0, None, None), (score, -depth, model))
run.log("best accuracy", best[0])
with open("tree.pkl", "wb") as file:
    pickle.dump(best[2], file)
run.upload_file("outputs/tree.pkl", "tree.pkl")
