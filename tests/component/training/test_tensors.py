"""Tensors as features: scikit-learn's digits, from a table to an answer."""

from __future__ import annotations

import io
from pathlib import Path

import deltalake
import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image
from sklearn.datasets import load_digits
from tests.support.serving import answered

from headrace.datasets import Flat, Reader, Table, Tensors
from headrace.errors import FailedPrecondition
from headrace.splits import Shares
from headrace.tensors import Format, TensorType
from headrace.training.run.data import load
from headrace.training.run.errors import UnusableDataset
from headrace.training.run.messages import Pipe
from headrace.training.run.preprocessing import Preprocessing
from headrace.training.run.report import MODEL_FILE, PREPROCESS_FILE, Report
from headrace.training.run.specification import (
    IN_MEMORY_BYTES,
    Column,
    Dataset,
    Label,
    Preparation,
    RunSpec,
)
from headrace.training.run.work import work

Images = NDArray[np.uint8]
# What a request may have.
ASKED_ROWS = 64
SCAN = TensorType("uint8", (160, 160, 3), "png")


def digits() -> tuple[Images, NDArray[np.int8]]:
    """1,797 images of 8 x 8 and which digit each is."""
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int8)


def encoded(image: Images, form: Format) -> bytes:
    if form == "raw":
        return image.tobytes()
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def write_digits(uri: str, form: Format, missing: tuple[int, ...] = ()) -> None:
    images, labels = digits()
    values = [None if row in missing else encoded(image, form) for row, image in enumerate(images)]
    table = pa.table(
        {
            "id": [f"digit-{row}" for row in range(len(labels))],
            "image": pa.array(values, pa.binary()),
            "digit": pa.array(labels, pa.int8()),
        }
    )
    for part in (table[:1000], table[1000:]):
        deltalake.write_deltalake(uri, part, mode="append")


def dataset_of(uri: str, tensor: TensorType) -> Dataset:
    return Dataset(
        name="digits",
        version=1,
        table_uri=uri,
        table_version=1,
        content_hash="",
        key="id",
        features=(Column(name="image", type="tensor", tensor=tensor),),
        label=Label(name="digit", type="int8", classes=tuple(map(str, range(10)))),
    )


@pytest.mark.parametrize("form", ["raw", "png"])
def test_tensors_are_read_in_their_type_and_shape(tmp_path: Path, form: Format) -> None:
    write_digits(str(tmp_path), form)
    images, labels = digits()
    tensor = TensorType("uint8", (8, 8), form)
    table = Table.open(str(tmp_path), 1)
    [(read, flat)] = Reader(
        table, [Tensors("image", tensor), Flat([("digit", None), ("image", tensor)])], batch_rows=2000
    )
    assert (read.dtype, read.shape) == (torch.uint8, (len(labels), 8, 8))
    # Files come in an order of their own.
    order = np.lexsort(read.reshape(len(labels), -1).numpy().T)
    expected = np.lexsort(images.reshape(len(labels), -1).T)
    np.testing.assert_array_equal(read.numpy()[order], images[expected])
    assert flat.dtype == torch.float32
    np.testing.assert_array_equal(flat[:, 1:].numpy(), read.reshape(len(labels), -1).numpy())
    assert sorted(flat[:, 0].tolist()) == sorted(labels.tolist())


def test_a_missing_tensor_is_refused_or_not_a_number() -> None:
    tensor = TensorType("uint8", (2,))
    batch = pa.record_batch({"t": pa.array([b"\1\2", None], pa.binary())})
    with pytest.raises(FailedPrecondition, match="t has no value in 1 of 2 rows"):
        Flat([("t", tensor)]).encode(batch)
    found = Flat([("t", tensor)], nullable=["t"]).encode(batch)
    assert found[0].tolist() == [1, 2]
    assert found[1].isnan().all()


def test_what_is_no_such_tensor_is_refused() -> None:
    text = pa.record_batch({"t": ["a"]})
    with pytest.raises(FailedPrecondition, match="t is string, and not a tensor's bytes"):
        Tensors("t", TensorType("uint8", (2,))).encode(text)
    short = pa.record_batch({"t": pa.array([b"\1"], pa.binary())})
    with pytest.raises(FailedPrecondition, match=r"t in one of 1 rows has 1 bytes, and uint8\[2\] has 2"):
        Tensors("t", TensorType("uint8", (2,))).encode(short)
    large = pa.record_batch({"t": pa.array([np.array([1e300], "<f8").tobytes()], pa.binary())})
    with pytest.raises(FailedPrecondition, match="beyond float32"):
        Flat([("t", TensorType("float64", (1,)))]).encode(large)


def test_more_values_than_a_model_receives_are_refused(tmp_path: Path) -> None:
    dataset = dataset_of(str(tmp_path), TensorType("uint8", (1024, 1025), "jpeg"))
    with pytest.raises(UnusableDataset, match=r"1,049,600 values .* 1,048,576 are the most"):
        load(dataset, Shares(1, 0, 0), classified=True, in_memory_bytes=0)


def test_streamed_tensors_are_those_that_are_held(tmp_path: Path) -> None:
    write_digits(str(tmp_path), "png")
    dataset = dataset_of(str(tmp_path), TensorType("uint8", (8, 8), "png"))
    shares = Shares(0.7, 0.15, 0.15)
    held, streamed = (load(dataset, shares, classified=True, in_memory_bytes=size) for size in (128 << 20, 0))
    for one, other in zip(held.splits(), streamed.splits(), strict=True):
        [(pixels, _)] = one.batches()
        [(same, _)] = other.batches()
        assert torch.equal(pixels.sort(dim=0).values, same.sort(dim=0).values)


def learned(uri: str, store_uri: str, folder: Path, preparation: Preparation) -> Report:
    """What a run on the digits of that table says."""
    dataset = dataset_of(uri, TensorType("uint8", (8, 8), "png"))
    return run(spec_of(dataset, store_uri, preparation), folder)


def spec_of(dataset: Dataset, store_uri: str, preparation: Preparation) -> RunSpec:
    return RunSpec(
        run="digits-1",
        job="digits",
        attempt=1,
        pipeline="digits",
        node="n",
        recipe="mlp",
        parameters={"hidden": [32], "epochs": 8, "learning_rate": 0.01},
        dataset=dataset,
        shares=Shares(0.7, 0.15, 0.15),
        preparations=(preparation,),
        normalise_label=False,
        seed=1,
        store_uri=store_uri,
    )


def run(spec: RunSpec, folder: Path) -> Report:
    folder.mkdir()
    work(spec, folder, Pipe(None), lambda: False)
    return Report.read(folder)


def test_digits_are_learned_from_smaller_images(store_uri: str, tmp_path: Path) -> None:
    uri, folder = str(tmp_path / "table"), tmp_path / "run"
    write_digits(uri, "png")
    wish = Preparation(feature="image", normalise="standard", resize=(4, 4), per_channel=True)
    report = learned(uri, store_uri, folder, wish)
    assert report.metrics["test/accuracy"] > 0.85
    # Clients send the image as it is.
    assert report.signature.inputs[0].shape == (-1, 64)
    document = Preprocessing.model_validate_json((folder / PREPROCESS_FILE).read_text())
    [entry] = document.features
    assert (entry.values, len(entry.centre), len(entry.spread)) == (16, 1, 1)


def write_scans(uri: str) -> Images:
    """64 images of 160 x 160 pixels, in every second of which red is brighter than blue."""
    random = np.random.default_rng(1)
    images = random.integers(0, 200, (64, *SCAN.shape), np.uint8)
    images[::2, ..., 0] += 50
    images[1::2, ..., 2] += 50
    table = pa.table(
        {
            "id": [f"scan-{row}" for row in range(len(images))],
            "image": pa.array([encoded(image, SCAN.format) for image in images], pa.binary()),
            "digit": pa.array([row % 2 for row in range(len(images))], pa.int8()),
        }
    )
    for part in (table[:40], table[40:]):
        deltalake.write_deltalake(uri, part, mode="append")
    return images


def scans_spec(uri: str, store_uri: str, resize: tuple[int, int] | None) -> RunSpec:
    wish = Preparation(feature="image", normalise="standard", per_channel=True, resize=resize)
    return spec_of(dataset_of(uri, SCAN), store_uri, wish).model_copy(
        update={
            "shares": Shares(1, 0, 0),
            "parameters": {"hidden": [8], "epochs": 4, "learning_rate": 0.0001 if resize is None else 0.003},
        }
    )


@pytest.mark.parametrize("resize", [None, (32, 32)])
@pytest.mark.parametrize("in_memory_bytes", [0, IN_MEMORY_BYTES])
def test_large_images_are_learned_from_and_exported(
    store_uri: str, tmp_path: Path, resize: tuple[int, int] | None, in_memory_bytes: int
) -> None:
    uri, folder = str(tmp_path / "table"), tmp_path / "run"
    images = write_scans(uri)
    spec = scans_spec(uri, store_uri, resize).model_copy(update={"in_memory_bytes": in_memory_bytes})
    report = run(spec, folder)
    assert report.signature.inputs[0].shape == (-1, 160 * 160 * 3)
    assert report.signature.features == ("image[0:160,0:160,0:3]",)
    assert report.metrics["train/accuracy"] > 0.9
    document = Preprocessing.model_validate_json((folder / PREPROCESS_FILE).read_text())
    assert [len(entry.centre) for entry in document.features] == [3]

    exported = ReferenceEvaluator(onnx.load(folder / MODEL_FILE))
    raw = images.reshape(len(images), -1).astype(np.float32)
    probabilities, labels = exported.run(None, {"features": raw})
    truth = np.arange(len(images)) % 2
    # The trained model's own loss and answers, of the same images.
    loss = -np.log(probabilities[np.arange(len(images)), truth]).mean()
    assert loss > 1e-4
    assert loss == pytest.approx(report.metrics["train/loss"], rel=1e-4)
    assert np.mean(labels == truth) == report.metrics["train/accuracy"]


async def test_digits_are_learned_and_served(kafka_bootstrap: str, store_uri: str, tmp_path: Path) -> None:
    uri, folder = str(tmp_path / "table"), tmp_path / "run"
    write_digits(uri, "png")
    report = learned(uri, store_uri, folder, Preparation(feature="image", normalise="min_max"))
    assert report.signature.features[:2] == ("image[0,0]", "image[0,1]")
    assert report.metrics["test/accuracy"] > 0.9
    assert report.signature.inputs[0].shape == (-1, 64)
    images, labels = (values[:ASKED_ROWS] for values in digits())
    raw = images.reshape(ASKED_ROWS, -1).astype(np.float32)
    model = (folder / MODEL_FILE).read_bytes()
    answer = await answered(kafka_bootstrap, tmp_path, model, report.signature, raw)
    found = answer.as_numpy("label").reshape(-1)
    assert np.mean(found == labels) > 0.9


async def test_large_images_are_served_as_they_are(
    kafka_bootstrap: str, store_uri: str, tmp_path: Path
) -> None:
    uri, folder = str(tmp_path / "table"), tmp_path / "run"
    raw = write_scans(uri).reshape(ASKED_ROWS, -1).astype(np.float32)
    report = run(scans_spec(uri, store_uri, (32, 32)), folder)
    model = (folder / MODEL_FILE).read_bytes()
    answer = await answered(kafka_bootstrap, tmp_path, model, report.signature, raw)
    truth = np.arange(ASKED_ROWS) % 2
    assert np.mean(answer.as_numpy("label").reshape(-1) == truth) == report.metrics["train/accuracy"]
