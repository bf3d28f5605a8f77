"""Makes the small models that tests run. Needs onnx and numpy: `python make.py` writes them beside this file."""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
# Every engine reads it, and ReduceMean still has its axes as an attribute.
OPSET = 13


def save(name, nodes, inputs, outputs, weights=None, opset=OPSET, domains=()):
    info = lambda ports: [helper.make_tensor_value_info(port, kind, shape) for port, kind, shape in ports]
    constants = [numpy_helper.from_array(value, constant) for constant, value in (weights or {}).items()]
    model = helper.make_model(
        helper.make_graph(nodes, name, info(inputs), info(outputs), constants),
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)],
        ir_version=8,
        producer_name="tidegate",
    )
    onnx.save(model, HERE / f"{name}.onnx")


def types():
    """Each type goes in and comes out as it is; one model for each, since an engine may know some of them only."""
    kinds = {
        "f16": T.FLOAT16, "f32": T.FLOAT, "f64": T.DOUBLE, "bf16": T.BFLOAT16,
        "u8": T.UINT8, "i32": T.INT32, "i64": T.INT64, "bool": T.BOOL,
    }
    for name, kind in kinds.items():
        node = helper.make_node("Identity", ["x"], ["y"])
        save(f"identity-{name}", [node], [("x", kind, [2, 2])], [("y", kind, [2, 2])])


def shapes():
    # Any number of rows of three; what comes out is their mean, a single value for each row.
    node = helper.make_node("ReduceMean", ["rows"], ["means"], axes=[1], keepdims=0)
    save("row-means", [node], [("rows", T.FLOAT, ["count", 3])], [("means", T.FLOAT, ["count"])])
    # Two inputs, one of them a single value; a single value out.
    nodes = [
        helper.make_node("Mul", ["values", "factor"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled"], ["sum"], keepdims=0),
    ]
    save("scaled-sum", nodes, [("values", T.FLOAT, [4]), ("factor", T.FLOAT, [])], [("sum", T.FLOAT, [])])
    # What comes out is larger than what goes in.
    node = helper.make_node("Concat", ["few", "few", "few"], ["many"], axis=0)
    save("thrice", [node], [("few", T.FLOAT, ["n"])], [("many", T.FLOAT, ["m"])])


def branches():
    branch = lambda name, op: helper.make_graph(
        [helper.make_node(op, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, T.FLOAT, [2])]
    )
    node = helper.make_node("If", ["positive"], ["y"], then_branch=branch("same", "Identity"), else_branch=branch("negated", "Neg"))
    save("if", [node], [("positive", T.BOOL, []), ("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])])


def refused():
    # An operator that ONNX Runtime has and ONNX does not.
    node = helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    save("contributed", [node], [("x", T.FLOAT, [2, 2])], [("y", T.FLOAT, [2, 2])], domains=["com.microsoft"])
    # An operator that nobody has.
    node = helper.make_node("Guess", ["x"], ["y"])
    save("unknown", [node], [("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])])
    node = helper.make_node("Identity", ["x"], ["y"])
    save("strings", [node], [("x", T.STRING, [2])], [("y", T.STRING, [2])])
    # The output is made by no node; tract panics.
    save("dangling", [helper.make_node("Identity", ["x"], ["z"])], [("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])])


def slow():
    """A second or so of work: a chain of multiplications that cannot be folded."""
    count = 4
    save(
        "loop",
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=helper.make_graph(
            [
                helper.make_node("MatMul", ["before", "before"], ["squared"]),
                helper.make_node("Tanh", ["squared"], ["after"]),
                helper.make_node("Identity", ["going"], ["goes"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("turn", T.INT64, []),
                helper.make_tensor_value_info("going", T.BOOL, []),
                helper.make_tensor_value_info("before", T.FLOAT, [count, count]),
            ],
            [
                helper.make_tensor_value_info("goes", T.BOOL, []),
                helper.make_tensor_value_info("after", T.FLOAT, [count, count]),
            ],
        ))],
        [("times", T.INT64, []), ("x", T.FLOAT, [count, count])],
        [("y", T.FLOAT, [count, count])],
    )


if __name__ == "__main__":
    types()
    shapes()
    branches()
    refused()
    slow()
