"""Makes the ONNX models of the bench: `make-models.py DIR`. Needs `onnx` and `numpy`, as in tests/models/requirements.txt.

Their weights are random but the same each time; only how long they take matters.
"""

import argparse
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Old enough for every engine; the next ones move attributes into inputs.
OPSET, IR = 13, 8


def save(folder, name, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, key) for key, value in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / f"{name}.onnx")


def mlp(folder, sides=(600, 64, 32, 4)):
    """As small as a model on a gateway comes: some 40,000 weights."""
    random, nodes, weights, last = np.random.default_rng(1), [], [], "x"
    for layer, (inside, outside) in enumerate(zip(sides, sides[1:])):
        weights.append((f"w{layer}", random.normal(0, inside**-0.5, (inside, outside)).astype(np.float32)))
        weights.append((f"b{layer}", np.zeros(outside, np.float32)))
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
        nodes.append(helper.make_node("Relu", [f"g{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes[-1] = helper.make_node("Softmax", [f"g{layer}"], ["y"], axis=1)
    save(folder, "mlp", nodes, [("x", TensorProto.FLOAT, [1, sides[0]])], [("y", TensorProto.FLOAT, [1, sides[-1]])], weights)


def mobilenet(folder, side=160, classes=100):
    """Depthwise-separable convolutions as in MobileNet: a few milliseconds on one thread."""
    random, nodes, weights = np.random.default_rng(2), [], []
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1)]

    def convolve(last, inside, outside, kernel, stride, group=1):
        name = f"c{len(nodes)}"
        fan_in = inside // group * kernel * kernel
        shape = (outside, inside // group, kernel, kernel)
        weights.append((f"{name}.w", random.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [last, f"{name}.w"], [name], pads=pads, strides=[stride] * 2, group=group))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.r"]))
        return f"{name}.r"

    last, width = convolve("image", 3, 32, 3, 2), 32
    for outside, stride in blocks:
        last = convolve(last, width, width, 3, stride, group=width)
        last, width = convolve(last, width, outside, 1, 1), outside
    weights.append(("head", random.normal(0, width**-0.5, (width, classes)).astype(np.float32)))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=1))
    image = ("image", TensorProto.FLOAT, [1, 3, side, side])
    save(folder, "mobilenet", nodes, [image], [("y", TensorProto.FLOAT, [1, classes])], weights)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path, metavar="DIR")
    folder = arguments.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    mlp(folder)
    mobilenet(folder)


if __name__ == "__main__":
    main()
