"""Trains the motion models on the TRAIN part of BasicMotions, and measures them on the TEST part.

A model is a logistic regression on features of each axis, with the features inside the ONNX graph: a function sends 100 raw samples
and gets one probability for each activity. `motion` has three features (mean, deviation, mean step). `motion-first` has one, the mean of
the gyroscope's axes, and errs in three windows of eight: what a first version may be, and `tidegate demo` replaces while events flow.
"""

import json
import pathlib
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import zstandard
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

ACTIVITIES = ["Standing", "Running", "Walking", "Badminton"]
SAMPLES, AXES = 100, 6
WATCHES = 4
# The newest operator set in which ReduceMean still has its axes as an attribute: every engine reads it.
OPSET = 13
EXAMPLE = pathlib.Path(__file__).resolve().parent.parent


def read(wheel, part):
    """Windows as [case, sample, axis], and each one's activity, from the archive's text form: axes apart by ':'."""
    name = f"aeon/datasets/data/BasicMotions/BasicMotions_{part}.ts"
    lines = zipfile.ZipFile(wheel).read(name).decode().splitlines()
    cases = [line.strip().split(":") for line in lines if line.strip() and line[0] not in "#@"]
    windows = np.array([[axis.split(",") for axis in case[:AXES]] for case in cases]).astype(np.float64)
    return windows.transpose(0, 2, 1), np.array([ACTIVITIES.index(case[AXES]) for case in cases])


def features(windows, names):
    mean = windows.mean(axis=1)
    deviation = np.sqrt(((windows - mean[:, None]) ** 2).mean(axis=1))
    step = np.abs(np.diff(windows, axis=1)).mean(axis=1)
    known = {"mean": mean, "deviation": deviation, "step": step, "turn": mean[:, 3:]}
    return np.concatenate([known[name] for name in names], axis=1)


def train(windows, activities, names):
    """Weights and bias for the features as they are: their scale is folded in."""
    x = features(windows, names)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    fit = LogisticRegression(max_iter=10_000).fit((x - centre) / scale, activities)
    weights = (fit.coef_ / scale).T
    return weights, fit.intercept_ - centre @ weights


def graph(weights, bias, names):
    constants = {
        "weights": weights.astype(np.float32),
        "bias": bias.astype(np.float32),
    }
    steps = {
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "last": np.array([SAMPLES - 1], np.int64),
        "end": np.array([SAMPLES], np.int64),
        "time": np.array([1], np.int64),
    }
    turns = {"gyroscope": np.array([3], np.int64), "axes": np.array([AXES], np.int64), "axis": np.array([1], np.int64)}
    if "step" in names:
        constants |= steps
    if "turn" in names:
        constants |= turns
    over_time = {"axes": [1]}
    mean = [helper.make_node("ReduceMean", ["window"], ["mean"], keepdims=0, **over_time)]
    deviation = [
        helper.make_node("Sub", ["window", "mean_kept"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["variance"], keepdims=0, **over_time),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
    ]
    step = [
        helper.make_node("Slice", ["window", "second", "end", "time"], ["later"]),
        helper.make_node("Slice", ["window", "first", "last", "time"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["steps"]),
        helper.make_node("Abs", ["steps"], ["step_sizes"]),
        helper.make_node("ReduceMean", ["step_sizes"], ["step"], keepdims=0, **over_time),
    ]
    kept = [helper.make_node("ReduceMean", ["window"], ["mean_kept"], keepdims=1, **over_time)]
    turn = [
        helper.make_node("ReduceMean", ["window"], ["mean"], keepdims=0, **over_time),
        helper.make_node("Slice", ["mean", "gyroscope", "axes", "axis"], ["turn"]),
    ]
    of = {"mean": mean, "deviation": deviation, "step": step, "turn": turn}
    nodes = kept if "deviation" in names else []
    nodes = nodes + [node for name in names for node in of[name]] + [
        helper.make_node("Concat", names, ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "motion",
            [helper.make_tensor_value_info("window", TensorProto.FLOAT, [1, SAMPLES, AXES])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(ACTIVITIES)])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="tidegate",
    )
    helper.set_model_props(model, {"activities": ",".join(ACTIVITIES), "trained_on": "BasicMotions TRAIN"})
    onnx.checker.check_model(model, full_check=True)
    return model


def predict(model, windows):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.array([session.run(None, {"window": w[None].astype(np.float32)})[0] for w in windows])[:, 0]


def model_tests(model, windows, activities):
    """One TRAIN window of each activity: what a replacement of the model must still say."""
    tests = []
    for activity, name in enumerate(ACTIVITIES):
        window = windows[activities == activity][0]
        expected = predict(model, [window])[0]
        tests.append({
            "name": f"a window of {name}",
            "inputs": {"window": {"type": "f32", "shape": [1, SAMPLES, AXES], "data": window.ravel().tolist()}},
            "outputs": {"probabilities": {"type": "f32", "shape": [1, 4], "data": [round(float(p), 6) for p in expected]}},
            "tolerance": 1e-3,
        })
    return {"tests": tests}


def recording(windows, activities):
    """The TEST part as the watches would send it: window w of watch d holds case 4w + d; ten samples a second each."""
    rows = ["device,seq,activity,ax,ay,az,gx,gy,gz"]
    for seq in range(len(windows) // WATCHES * SAMPLES):
        for watch in range(WATCHES):
            case = seq // SAMPLES * WATCHES + watch
            values = ",".join(f"{value:.6f}".rstrip("0").rstrip(".") for value in windows[case, seq % SAMPLES])
            rows.append(f"watch-{watch + 1},{seq},{ACTIVITIES[activities[case]]},{values}")
    return "\n".join(rows) + "\n"


def main():
    wheel = sys.argv[1]
    windows, activities = read(wheel, "TRAIN")
    test_windows, test_activities = read(wheel, "TEST")
    for file, names in [("motion", ["mean", "deviation", "step"]), ("motion-first", ["turn"])]:
        model = graph(*train(windows, activities, names), names)
        predicted = predict(model, test_windows).argmax(axis=1)
        right = int((predicted == test_activities).sum())
        print(f"{file}, TEST: {right} of {len(test_activities)} windows right, accuracy {right / len(test_activities):.3f}")
        onnx.save(model, EXAMPLE / f"models/{file}.onnx")
        tests = json.dumps(model_tests(model, windows, activities))
        (EXAMPLE / f"models/{file}.tests.json").write_text(tests.replace('{"name"', '\n{"name"') + "\n")
    csv = recording(test_windows, test_activities)
    compressed = zstandard.ZstdCompressor(level=19).compress(csv.encode())
    (EXAMPLE / "data/basic-motions-test.csv.zst").write_bytes(compressed)


if __name__ == "__main__":
    main()
