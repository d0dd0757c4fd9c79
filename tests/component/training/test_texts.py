"""Texts as features: from a table, by the categories of its training split, to an answer."""

from __future__ import annotations

from pathlib import Path

import deltalake
import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from tests.support.serving import answered

from headrace.datasets import Categories
from headrace.errors import FailedPrecondition
from headrace.recipes import MlpParameters
from headrace.splits import SPLITS, Shares, assign
from headrace.training.run.data import Data, load
from headrace.training.run.errors import UnusableDataset
from headrace.training.run.export import Classifier, export
from headrace.training.run.messages import Pipe
from headrace.training.run.model import Normalised, build_mlp
from headrace.training.run.preprocessing import Preprocessing, Preprocessor, fit
from headrace.training.run.report import MODEL_FILE, PREPROCESS_FILE, Report
from headrace.training.run.scale import Scale
from headrace.training.run.specification import Column, Dataset, Label, Preparation, RunSpec
from headrace.training.run.work import work

ROWS = 600
SHARES = Shares(0.7, 0.15, 0.15)
COLOURS = ("blue", "grün", "red")
PREPARATIONS = (
    Preparation(feature="size", normalise="standard"),
    Preparation(feature="colour", encode="one_hot", missing="constant", text_constant="grün", indicator=True),
    Preparation(feature="weight", missing="mean"),
    Preparation(feature="site", encode="ordinal"),
)


def a_table(rows: int = ROWS) -> pa.Table:
    """What is red or of site A is 1; colours and weights are missing here and there."""
    random = np.random.default_rng(5)
    colour = random.choice([*COLOURS, "", None], rows)
    site = random.choice(["A", "B", "C"], rows)
    return pa.table(
        {
            "id": [f"car-{row}" for row in range(rows)],
            "size": pa.array(random.normal(5, 3, rows), pa.float32()),
            "colour": pa.array(colour.tolist(), pa.string()),
            "weight": pa.array(np.where(random.random(rows) < 0.2, None, 1.0), pa.float32()),
            "site": pa.array(site.tolist(), pa.string()),
            "good": pa.array(((colour == "red") | (site == "A")).astype(np.int8), pa.int8()),
        }
    )


def a_spec(uri: str, store_uri: str) -> RunSpec:
    return RunSpec(
        run="cars-1",
        job="cars",
        attempt=1,
        pipeline="cars",
        node="n",
        recipe="mlp",
        parameters={"hidden": [16], "epochs": 60, "learning_rate": 0.02},
        dataset=Dataset(
            name="cars",
            version=1,
            table_uri=uri,
            table_version=0,
            content_hash="",
            key="id",
            features=(
                Column(name="size", type="float32"),
                Column(name="colour", type="string"),
                Column(name="weight", type="float32"),
                Column(name="site", type="string"),
            ),
            label=Label(name="good", type="int8", classes=("0", "1")),
        ),
        shares=SHARES,
        preparations=PREPARATIONS,
        normalise_label=False,
        seed=1,
        store_uri=store_uri,
    )


def loaded(
    uri: str, in_memory_bytes: int = 128 << 20, nullable: tuple[str, ...] = ("colour", "weight")
) -> Data:
    return load(
        a_spec(uri, "").dataset,
        SHARES,
        classified=True,
        in_memory_bytes=in_memory_bytes,
        nullable=nullable,
        texts=["colour", "site"],
    )


def splits_of(table: pa.Table) -> NDArray[np.int8]:
    return assign(table.column("id").combine_chunks(), SHARES)


def test_a_text_is_its_place_among_the_categories() -> None:
    batch = pa.record_batch({"x": ["b", "a", "new", "", None, "grün"]})
    found = Categories("x", ["a", "b", "grün"], nullable=True).encode(batch)
    assert (found.dtype, found.shape) == (torch.float32, (6, 1))
    np.testing.assert_array_equal(found[:, 0].numpy(), [1, 0, -1, np.nan, np.nan, 2])
    with pytest.raises(FailedPrecondition, match="x has no value in 2 of 6 rows; say what stands"):
        Categories("x", ["a"]).encode(batch)
    with pytest.raises(FailedPrecondition, match="x is int64, and not text"):
        Categories("x", ["a"]).encode(pa.record_batch({"x": [1]}))


@pytest.mark.parametrize("in_memory_bytes", [0, 128 << 20])
def test_categories_are_those_of_the_training_split(tmp_path: Path, in_memory_bytes: int) -> None:
    table = a_table()
    split = splits_of(table)
    # No row of the training split has this one, and no row of another has that one.
    site = np.where(split == SPLITS.index("train"), "only-training", "only-tests").tolist()
    place = table.column_names.index("site")
    deltalake.write_deltalake(str(tmp_path), table.set_column(place, "site", pa.array(site)))
    data = loaded(str(tmp_path), in_memory_bytes)
    assert data.categories == {"colour": COLOURS, "site": ("only-training",)}
    for part, expected in zip(data.splits(), (0, -1, -1), strict=True):
        places = torch.cat([rows.features[:, 3] for rows in part.batches()])
        assert len(places) == (split == SPLITS.index(part.name)).sum()
        assert (places == expected).all()


def test_more_categories_than_can_be_encoded_are_refused(tmp_path: Path) -> None:
    table = a_table(2_000)
    place = table.column_names.index("site")
    names = pa.array([f"site {row}" for row in range(2_000)])
    deltalake.write_deltalake(str(tmp_path), table.set_column(place, "site", names))
    with pytest.raises(
        UnusableDataset, match=r"site has more than 1,000 different texts .*; encode features"
    ):
        loaded(str(tmp_path))


@pytest.mark.parametrize("in_memory_bytes", [0, 128 << 20])
def test_a_missing_text_is_refused_where_nothing_stands_for_it(tmp_path: Path, in_memory_bytes: int) -> None:
    deltalake.write_deltalake(str(tmp_path), a_table())
    with pytest.raises(UnusableDataset, match=r"colour has no value in \d+ of \d+ rows"):
        loaded(str(tmp_path), in_memory_bytes, nullable=("weight",))


def test_texts_without_an_encoding_are_refused_with_what_to_do(store_uri: str, tmp_path: Path) -> None:
    deltalake.write_deltalake(str(tmp_path / "table"), a_table())
    spec = a_spec(str(tmp_path / "table"), store_uri)
    plain = (*PREPARATIONS[:3], Preparation(feature="site"))
    with pytest.raises(UnusableDataset, match=r"site is text, .*; encode its words"):
        work(spec.model_copy(update={"preparations": plain}), tmp_path, Pipe(None), lambda: False)


def test_a_run_learns_from_texts(store_uri: str, tmp_path: Path) -> None:
    deltalake.write_deltalake(str(tmp_path / "table"), a_table())
    folder = tmp_path / "run"
    folder.mkdir()
    work(a_spec(str(tmp_path / "table"), store_uri), folder, Pipe(None), lambda: False)
    report = Report.read(folder)
    assert report.metrics["test/accuracy"] > 0.95
    signature = report.signature
    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in signature.inputs] == [
        ("features", "FP32", (-1, 2)),
        ("texts", "BYTES", (-1, 2)),
    ]
    assert (signature.features, signature.texts) == (("size", "weight"), ("colour", "site"))
    document = Preprocessing.model_validate_json((folder / PREPROCESS_FILE).read_text())
    assert document.features[1].texts == COLOURS
    asked = {
        "features": np.array([[5, 1], [5, np.nan], [5, 1]], np.float32),
        "texts": np.array([["red", "C"], ["blue", "B"], ["", "A"]], object),
    }
    _, labels = ReferenceEvaluator(onnx.load(folder / MODEL_FILE)).run(None, asked)
    assert labels.tolist() == [1, 0, 1]


async def test_triton_answers_raw_texts_as_the_trained_model_does(
    kafka_bootstrap: str, store_uri: str, tmp_path: Path
) -> None:
    deltalake.write_deltalake(str(tmp_path / "table"), a_table())
    spec = a_spec(str(tmp_path / "table"), store_uri)
    data = loaded(spec.dataset.table_uri)
    train = next(data.train.batches()).features
    torch.manual_seed(1)
    preprocessor = Preprocessor(fit(PREPARATIONS, [train], 0, texts=data.categories))
    network = build_mlp(preprocessor.width, 2, MlpParameters(hidden=(8,)))
    model = Normalised(network, preprocessor, Scale.identity(1)).eval()
    file = tmp_path / "model.onnx"
    signature = export(model, spec.dataset, data.categories, train, file, classified=True)

    features = np.array([[5, 1], [7, np.nan], [3, 2], [1, 1], [0, 0]], np.float32)
    texts = np.array([["red", "A"], ["", "B"], ["yellow", "C"], [b"gr\xc3\xbcn", "D"], [b"\xff", ""]], object)
    nan = np.nan
    places = [[2, 0], [nan, 1], [-1, 2], [1, -1], [-1, nan]]
    rows = torch.tensor(np.column_stack([features, places])[:, [0, 2, 1, 3]], dtype=torch.float32)
    with torch.no_grad():
        probabilities, labels = Classifier(model, (0, 1))(rows)
    answer = await answered(kafka_bootstrap, tmp_path, file.read_bytes(), signature, features, texts)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("label").reshape(-1), labels.numpy())


def test_texts_alone_are_an_input_of_their_own(tmp_path: Path) -> None:
    dataset = a_spec("", "").dataset
    dataset = dataset.model_copy(update={"features": (Column(name="site", type="string"),)})
    places = torch.tensor([[0.0], [1.0]])
    categories = {"site": ("A", "B")}
    wishes = [Preparation(feature="site", encode="one_hot")]
    preprocessor = Preprocessor(fit(wishes, [places], 0, texts=categories))
    model = Normalised(build_mlp(2, 2, MlpParameters(hidden=(2,))), preprocessor, Scale.identity(1)).eval()
    file = tmp_path / "model.onnx"
    signature = export(model, dataset, categories, places, file, classified=True)
    assert [tensor.name for tensor in signature.inputs] == ["texts"]
    probabilities, _ = ReferenceEvaluator(onnx.load(file)).run(
        None, {"texts": np.array([["A"], ["B"]], object)}
    )
    with torch.no_grad():
        expected, _ = Classifier(model, (0, 1))(places)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-4)
