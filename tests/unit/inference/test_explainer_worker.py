"""What the process that explains finds, of models as training exports them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from tests.support.explaining import BASELINE, ROWS, a_task
from tests.support.exported import export_mlp

from headrace.inference.explainer import worker
from headrace.inference.explainer.frames import LENGTH, Reply, Task
from headrace.inference.explainer.graph import is_continuous
from headrace.inference.explainer.onnx_model import OnnxModel
from headrace.training.run.specification import Preparation

TRAINING = torch.tensor([[30.0, 1.6], [50.0, 1.9], [70.0, 1.7], [20.0, 1.8]])


def preparations(**wish: Any) -> list[Preparation]:
    return [Preparation(feature="age", **wish), Preparation(feature="height", normalise="standard")]


def explained(task: Task) -> Reply:
    return worker.explained(OnnxModel.load(task), task)


@pytest.mark.parametrize(
    ("wish", "method"),
    [
        ({"normalise": "standard", "missing": "mean", "clip_min": 0.0}, "INTEGRATED_GRADIENTS"),
        ({"missing": "mean", "indicator": True}, "INTEGRATED_GRADIENTS"),
        # Categories jump; a logarithm is computed with a comparison.
        ({"encode": "one_hot"}, "SHAPLEY_SAMPLING"),
        ({"log": True}, "SHAPLEY_SAMPLING"),
    ],
)
def test_a_model_without_jumps_has_its_gradients_integrated(
    wish: dict[str, Any], method: str, tmp_path: Path
) -> None:
    export_mlp(tmp_path / "model.onnx", preparations(**wish), TRAINING)
    reply = explained(a_task(tmp_path / "model.onnx"))
    assert [(row.method, row.stop) for row in reply.rows] == [(method, "CONVERGED")] * 2
    for row in reply.rows:
        assert row.answer == max(row.answer, 1 - row.answer)
        assert sum(row.amounts) - row.gap == pytest.approx(row.answer - row.baseline_answer)


def test_differences_integrate_what_pytorch_finds_for_gradients(tmp_path: Path) -> None:
    model, _ = export_mlp(tmp_path / "model.onnx", preparations(normalise="standard"), TRAINING)
    row, baseline = torch.tensor(ROWS[0]), torch.tensor(BASELINE)
    shares = (torch.arange(2000)[:, None] + 0.5) / 2000
    points = (baseline + shares * (row - baseline)).requires_grad_()
    torch.softmax(model(points), dim=-1)[:, 1].sum().backward()
    assert points.grad is not None
    right = (points.grad.mean(dim=0) * (row - baseline)).tolist()

    [found] = explained(a_task(tmp_path / "model.onnx", ROWS[:1], place=1)).rows
    assert found.amounts == pytest.approx(right, abs=0.01 * sum(map(abs, right)))


def test_texts_and_missing_numbers_are_sampled(tmp_path: Path) -> None:
    wishes = [
        *preparations(missing="mean"),
        Preparation(feature="colour", encode="one_hot", missing="constant"),
    ]
    data = torch.cat([TRAINING, torch.tensor([[0.0], [1.0], [0.0], [1.0]])], dim=1)
    export_mlp(tmp_path / "model.onnx", wishes, data, {"colour": ("blue", "red")})
    task = a_task(
        tmp_path / "model.onnx", [[math.nan, 1.6]], texts=[["red"]], baseline_texts=["blue"], place=1
    )
    [row] = explained(task).rows
    assert row.method == "SHAPLEY_SAMPLING"
    assert row.gap == pytest.approx(0, abs=1e-9)
    assert row.amounts[2] != 0
    asked = task.model_copy(update={"method": "INTEGRATED_GRADIENTS"})
    assert explained(asked).failure == "METHOD_NOT_APPLICABLE"


def test_how_many_numbers_are_above_zero_jumps(tmp_path: Path) -> None:
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 2])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    nodes = [
        helper.make_node("Relu", ["features"], ["above"]),
        helper.make_node("NonZero", ["above"], ["places"]),
        helper.make_node("Size", ["places"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["features", "number"], ["probabilities"]),
    ]
    graph = helper.make_graph(nodes, "counting", [features], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert not is_continuous(tmp_path / "model.onnx", frozenset({"features"}), "probabilities")


@pytest.mark.parametrize(
    ("between", "continuous"),
    [
        ([("Pow", ["features", "two"], "moved")], True),
        ([("Pow", ["features", "minus"], "moved")], False),
        ([("Pow", ["features", "features"], "moved")], False),
        ([("IsNaN", ["features"], "missing"), ("Where", ["missing", "two", "features"], "moved")], True),
        (
            [
                ("Sqrt", ["features"], "root"),
                ("IsNaN", ["root"], "missing"),
                ("Where", ["missing", "two", "root"], "moved"),
            ],
            False,
        ),
    ],
)
def test_what_is_no_number_everywhere_may_jump(
    tmp_path: Path, between: list[tuple[str, list[str], str]], continuous: bool
) -> None:
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 2])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in between]
    minus = helper.make_node(
        "Constant", [], ["minus"], value=helper.make_tensor("minus", TensorProto.FLOAT, [1], [-1])
    )
    graph = helper.make_graph(
        [minus, *nodes, helper.make_node("Softmax", ["moved"], ["probabilities"])],
        "powers",
        [features],
        [answer],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    found = is_continuous(tmp_path / "model.onnx", frozenset({"features"}), "probabilities")
    assert found is continuous


def constant_model(path: Path, value: float) -> None:
    """Answers every row with one number."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 2])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["sums"]),
            helper.make_node("Add", ["sums", "value"], ["probabilities"]),
        ],
        "constant",
        [features],
        [answer],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [2, 1], [0, 0]),
            helper.make_tensor("value", TensorProto.FLOAT, [1], [value]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def replies(*tasks: Task) -> list[Reply]:
    """What the process answers to tasks, one after the other."""
    answers = io.BytesIO()
    worker.run(io.BytesIO(b"".join(task.packed() for task in tasks)), answers, OnnxModel.load)
    found, rest = [], answers.getvalue()
    while rest:
        (length,) = LENGTH.unpack(rest[: LENGTH.size])
        found.append(Reply.model_validate_json(rest[LENGTH.size :][:length]))
        rest = rest[LENGTH.size + length :]
    return found


def test_a_process_says_what_failed_and_goes_on(tmp_path: Path) -> None:
    good, nan, broken = (tmp_path / name for name in ("good.onnx", "nan.onnx", "broken.onnx"))
    export_mlp(good, preparations(), TRAINING)
    constant_model(nan, math.nan)
    broken.write_bytes(b"no model")
    found = replies(
        a_task(broken, key="broken"),
        a_task(nan, key="nan"),
        a_task(good, key="good", evaluations=100),
        a_task(good, key="good", seconds=0.0),
        # It has the model by now.
        a_task(tmp_path / "gone", key="good"),
    )
    assert [reply.failure for reply in found] == [
        "MODEL_FAILED",
        "MODEL_FAILED",
        "TOO_FEW_EVALUATIONS",
        "EXPLANATION_TOO_SLOW",
        None,
    ]
    assert replies(a_task(good, evaluations=found[2].needed))[0].failure is None
    assert len(found[-1].rows) == 2
