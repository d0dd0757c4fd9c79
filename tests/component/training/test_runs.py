"""Runs in this process, on real data: the same result however often they are interrupted."""

from __future__ import annotations

from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import JsonValue
from sklearn.datasets import load_breast_cancer
from tests.support.runs import Runs, measured_accuracy, stop_after
from tests.support.training import KEY, LABEL, features

from headrace.errors import InvalidArgument
from headrace.objects import ObjectStore
from headrace.splits import TIME_COLUMN, Shares, assign
from headrace.training.run.data import HeldSplit, StreamedSplit, load
from headrace.training.run.errors import Interrupted, TableNotFound, UnusableDataset
from headrace.training.run.preprocessing import Preprocessing
from headrace.training.run.specification import (
    IN_MEMORY_BYTES,
    Column,
    Label,
    Preparation,
)


@pytest.mark.parametrize(
    "parameters",
    [
        {"optimizer": "adam", "batch_size": 32},
        {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.01, "batch_size": 50},
        {"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 0, "activation": "tanh"},
        {"early_stopping": {"patience": 3, "min_delta": 0.001}, "learning_rate": 0.05, "epochs": 60},
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(runs: Runs, parameters: dict[str, JsonValue]) -> None:
    whole = runs.spec("whole", **parameters)
    expected = runs.run(whole)
    parted = runs.spec("parted", **parameters)
    for epochs in (1, 2, 3):
        with pytest.raises(Interrupted):
            runs.run(parted, stop_after(epochs))
    found = runs.run(parted)
    assert found.resumed_epoch == 6
    assert found.losses == expected.losses
    assert found.metrics == expected.metrics
    assert (found.epochs, found.best_epoch) == (expected.epochs, expected.best_epoch)
    assert runs.weights(parted) == runs.weights(whole)


@pytest.mark.parametrize("stops", [(3, 7, 20, 1), (13,)])
@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": 32, "epochs": 5},
        {"batch_size": 0, "epochs": 54, "optimizer": "sgd", "momentum": 0.9},
        {"batch_size": 50, "epochs": 9, "early_stopping": {"patience": 3, "min_delta": 0.01}},
    ],
)
def test_a_streamed_run_that_is_interrupted_within_an_epoch_ends_with_the_same_bits(
    runs: Runs, parameters: dict[str, JsonValue], stops: tuple[int, ...]
) -> None:
    whole = runs.streamed("whole", **parameters)
    expected = runs.run(whole)
    parted = runs.streamed("parted", **parameters)
    for batches in stops:
        with pytest.raises(Interrupted):
            runs.run(parted, stop_after(batches))
    found = runs.run(parted)
    assert found.losses == expected.losses
    assert found.metrics == expected.metrics
    assert runs.weights(parted) == runs.weights(whole)


def test_a_streamed_run_has_the_splits_of_one_in_memory(runs: Runs) -> None:
    held, streamed = runs.run(runs.spec("held")), runs.run(runs.streamed("streamed"))
    assert streamed.rows == held.rows
    assert streamed.metrics["test/accuracy"] > 0.93


@pytest.mark.parametrize("in_memory_bytes", [0, IN_MEMORY_BYTES])
def test_a_run_by_time_tests_on_the_latest_rows(runs: Runs, tmp_path: Path, in_memory_bytes: int) -> None:
    """The rows are in an order of their own; of those without a label, which are the latest, none counts."""
    rows = deltalake.DeltaTable(runs.table_uri).to_pyarrow_table()
    days = np.random.default_rng(1).permutation(len(rows))
    labelled = days < 500
    spec = runs.spec("job")
    timed = rows.append_column(TIME_COLUMN, pa.array(days * 86_400_000_000, pa.timestamp("us", "UTC")))
    label = pa.array(rows.column(LABEL).to_pylist(), pa.int8(), mask=~labelled)
    timed = timed.set_column(timed.column_names.index(LABEL), LABEL, label)
    uri = str(tmp_path / "timed")
    deltalake.write_deltalake(uri, timed)
    dataset = spec.dataset.model_copy(update={"table_uri": uri})
    data = load(dataset, Shares(0.6, 0.2, 0.2, "time"), classified=True, in_memory_bytes=in_memory_bytes)
    assert [len(split) for split in data.splits()] == [300, 100, 100]
    first = np.asarray(rows.column(features()[0]), np.float32)
    for split, (begin, end) in zip(data.splits(), ((0, 300), (300, 400), (400, 500)), strict=True):
        found = np.concatenate([batch.features[:, 0].numpy() for batch in split.batches()])
        expected = first[(days >= begin) & (days < end)]
        np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    with pytest.raises(UnusableDataset, match="no column _event_time"):
        load(spec.dataset, Shares(0.6, 0.2, 0.2, "time"), classified=True, in_memory_bytes=in_memory_bytes)


def test_what_is_read_besides_the_features_counts_too(runs: Runs) -> None:
    spec = runs.spec("job")
    feature_bytes = 569 * len(features()) * 4
    large = load(spec.dataset, spec.shares, classified=True, in_memory_bytes=feature_bytes)
    assert isinstance(large.train, StreamedSplit)
    small = load(spec.dataset, spec.shares, classified=True, in_memory_bytes=2 * feature_bytes)
    assert isinstance(small.train, HeldSplit)


def test_full_batches_of_a_streamed_run_are_those_in_memory(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of the parts add up to the whole's."""
    monkeypatch.setattr("headrace.training.run.data.SWEPT_ROWS", 50)
    parameters: dict[str, JsonValue] = {
        "batch_size": 0,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "epochs": 200,
    }
    held = runs.run(runs.spec("held", **parameters))
    streamed = runs.run(runs.streamed("streamed", **parameters))
    losses = [[loss.train for loss in report.losses] for report in (held, streamed)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert streamed.metrics["test/loss"] == pytest.approx(held.metrics["test/loss"], rel=1e-3)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_missing_value_that_nothing_stands_for_is_refused(
    runs: Runs, tmp_path: Path, streamed: bool
) -> None:
    rows = deltalake.DeltaTable(runs.table_uri).to_pyarrow_table()
    gaps = pa.array([None, *rows.column(features()[0]).to_pylist()[1:]], pa.float32())
    uri = str(tmp_path / "gaps")
    deltalake.write_deltalake(uri, rows.set_column(1, features()[0], gaps))
    spec = runs.spec("job", shares=(1, 0, 0)).model_copy(
        update={"in_memory_bytes": 0 if streamed else IN_MEMORY_BYTES}
    )
    dataset = spec.dataset.model_copy(update={"table_uri": uri})
    with pytest.raises(UnusableDataset, match="mean_radius has no value in 1 of 569 rows"):
        runs.run(spec.model_copy(update={"dataset": dataset}))


def test_an_unusable_row_of_any_split_ends_a_streamed_run_before_it_is_trained(
    runs: Runs, tmp_path: Path
) -> None:
    """One of the test split has no value, or a label that is no class."""
    rows = deltalake.DeltaTable(runs.table_uri).to_pyarrow_table()
    spec = runs.streamed("job")
    last = int(np.flatnonzero(assign(rows.column(KEY).combine_chunks(), spec.shares) == 2)[-1])
    for name, kind, value, why in (
        (features()[0], pa.float32(), None, "has no value in 1 of 569 rows"),
        (LABEL, pa.int8(), 7, "1 of 569 labels are none of the classes"),
    ):
        column = rows.column(name).to_pylist()
        column[last] = value
        uri = str(tmp_path / f"without-{name}")
        changed = rows.set_column(rows.column_names.index(name), name, pa.array(column, kind))
        deltalake.write_deltalake(uri, changed)
        dataset = spec.dataset.model_copy(update={"table_uri": uri})
        with pytest.raises(UnusableDataset, match=why):
            load(dataset, spec.shares, classified=True, in_memory_bytes=0)


@pytest.mark.parametrize("in_memory_bytes", [0, IN_MEMORY_BYTES])
def test_a_prepared_run_takes_raw_rows_with_gaps_and_codes(
    runs: Runs, tmp_path: Path, in_memory_bytes: int
) -> None:
    """The first feature has gaps; a new one is a code for what the second one's range is."""
    first, second, *rest = features()
    rows = deltalake.DeltaTable(runs.table_uri).to_pyarrow_table()
    gaps = [None if row % 5 == 0 else value for row, value in enumerate(rows.column(first).to_pylist())]
    codes = pa.array([int(value) // 10 for value in rows.column(second).to_pylist()], pa.int16())
    rows = rows.set_column(1, first, pa.array(gaps, pa.float32())).append_column("code", codes)
    deltalake.write_deltalake(str(tmp_path / "prepared"), rows)
    spec = runs.spec("job", epochs=40)
    dataset = spec.dataset.model_copy(
        update={
            "table_uri": str(tmp_path / "prepared"),
            "features": (*spec.dataset.features, Column(name="code", type="int16")),
        }
    )
    preparations = (
        Preparation(feature=first, missing="median", indicator=True, normalise="robust"),
        Preparation(feature=second, log=True, normalise="min_max"),
        *(Preparation(feature=name, clip_min=0, normalise="standard") for name in rest),
        Preparation(feature="code", encode="one_hot"),
    )
    spec = spec.model_copy(
        update={"dataset": dataset, "preparations": preparations, "in_memory_bytes": in_memory_bytes}
    )
    report = runs.run(spec)
    document = Preprocessing.model_validate_json((tmp_path / "job" / "preprocess.json").read_text())
    assert [entry.feature for entry in document.features] == [first, second, *rest, "code"]
    assert document.width == 30 + len(document.features[-1].categories) + 1
    assert report.metrics["test/accuracy"] > 0.9
    assert report.signature.inputs[0].shape == (-1, 31)
    raw = np.column_stack([rows.column(c.name).to_numpy().astype(np.float32) for c in dataset.features])
    _, labels = runs.answers(spec, raw)
    assert np.mean(labels == rows.column(LABEL).to_numpy()) == pytest.approx(measured_accuracy(report))


def test_a_table_that_does_not_exist_is_named(runs: Runs, tmp_path: Path) -> None:
    spec = runs.spec("job")
    dataset = spec.dataset.model_copy(update={"table_uri": str(tmp_path / "none")})
    with pytest.raises(TableNotFound, match="version 0 of the table"):
        runs.run(spec.model_copy(update={"dataset": dataset}))


def test_another_seed_makes_another_model(runs: Runs) -> None:
    first = runs.spec("first")
    second = runs.spec("second").model_copy(update={"seed": 4})
    assert runs.run(first).losses != runs.run(second).losses


def test_a_checkpoint_of_another_specification_is_not_used(runs: Runs) -> None:
    with pytest.raises(Interrupted):
        runs.run(runs.spec("job"), stop_after(4))
    assert runs.run(runs.spec("job", learning_rate=0.01)).resumed_epoch == 0


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_not_used(runs: Runs, damage: bytes) -> None:
    spec = runs.spec("job")
    with pytest.raises(Interrupted):
        runs.run(spec, stop_after(4))
    ObjectStore.from_uri(runs.store_uri).write_bytes("checkpoints/job/1-00000004.pt", damage)
    assert runs.run(spec).resumed_epoch == 0


def test_a_checkpoint_of_a_gpu_is_resumed_without_one(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are saved as if they were on a GPU, on a machine where CUDA need not be available."""
    spec = runs.spec("job")
    with monkeypatch.context() as patched:
        patched.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
        with pytest.raises(Interrupted):
            runs.run(spec, stop_after(4))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert runs.run(spec).resumed_epoch == 4


def test_the_exported_model_answers_raw_rows_with_what_was_measured(runs: Runs) -> None:
    spec = runs.spec("job", epochs=60)
    report = runs.run(spec)
    data = load_breast_cancer()
    probabilities, labels = runs.answers(spec, data.data.astype(np.float32))
    assert probabilities.shape == (569, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert sum(report.rows.values()) == 569
    assert np.mean(labels == 1 - data.target) == pytest.approx(measured_accuracy(report))
    assert report.metrics["test/accuracy"] > 0.93


def test_a_number_that_is_learned_is_answered_though_the_label_has_classes(runs: Runs) -> None:
    spec = runs.spec("job", loss="mse")
    report = runs.run(spec)
    assert [tensor.name for tensor in report.signature.outputs] == ["prediction"]
    assert report.signature.classes == ()
    [predictions] = runs.answers(spec, load_breast_cancer().data.astype(np.float32))
    assert len(np.unique(predictions)) > 100


def test_normalisation_is_fitted_on_the_training_split_alone(runs: Runs, tmp_path: Path) -> None:
    spec = runs.spec("job", epochs=1)
    runs.run(spec)
    data = load(spec.dataset, spec.shares, classified=True, in_memory_bytes=spec.in_memory_bytes)
    means = next(data.train.batches()).features.double().mean(dim=0).float().numpy().tobytes()
    assert means in runs.weights(spec)


def test_a_regression_comes_close_to_ordinary_least_squares(runs: Runs) -> None:
    """A network without hidden layers, trained long enough, is the linear model."""
    from sklearn.linear_model import LinearRegression

    spec = runs.spec(
        "job",
        hidden=[],
        loss="mse",
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=0,
        epochs=3000,
    )
    dataset = spec.dataset.model_copy(
        update={
            "features": spec.dataset.features[1:3],
            "label": Label(name=features()[0], type="float32"),
        }
    )
    spec = spec.model_copy(
        update={"dataset": dataset, "preparations": spec.preparations[1:3], "normalise_label": True}
    )
    report = runs.run(spec)
    data = load(dataset, spec.shares, classified=False, in_memory_bytes=spec.in_memory_bytes)
    [train], [test] = data.train.batches(), data.test.batches()
    fitted = LinearRegression().fit(*train)
    error = fitted.predict(test.features) - test.labels.numpy()
    assert report.metrics["test/mse"] == pytest.approx(np.mean(error**2), rel=1e-3)


def test_a_training_split_without_rows_is_refused(runs: Runs) -> None:
    with pytest.raises(UnusableDataset, match="none is in the training split"):
        runs.run(runs.spec("job", shares=(1e-9, 0.5, 0.5 - 1e-9)))


def test_a_wrong_parameter_is_named(runs: Runs) -> None:
    with pytest.raises(InvalidArgument, match="hiden"):
        runs.run(runs.spec("job", hiden=[3]))


def test_threads_do_not_change_the_result(runs: Runs) -> None:
    one = runs.spec("one")
    two = runs.spec("two").model_copy(update={"cpu": 2.0})
    assert runs.run(one).losses[-1].train == pytest.approx(runs.run(two).losses[-1].train, rel=1e-5)
    torch.set_num_threads(1)
