"""Coverage-guided fuzzing of what reads bytes that anybody may send, by Atheris on libFuzzer.

    python -m tests.fuzz.decoders TARGET [libFuzzer options] [folders of inputs]

`TARGETS` are records, json, protobuf, avro, messages and envelopes.

What is compiled elsewhere is interpreted here: so the fuzzer sees which branches its input takes, and an
index beyond an array, which compiled code does not check, is an error.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"

import atheris
import orjson

with atheris.instrument_imports(include=["headrace"]):
    from tests.support.protobuf import message
    from tests.support.records import Sent, batch_of, decode
    from tests.unit.ingestion.test_avro import GOOD as GOOD_RECORD
    from tests.unit.ingestion.test_avro import PLAIN, assert_columns_and_records_agree, written
    from tests.unit.ingestion.test_columnar import GOOD, assert_columns_and_rows_agree
    from tests.unit.ingestion.test_flat_protobuf import assert_columns_and_messages_agree
    from tests.unit.ingestion.test_flat_protobuf import written as sample_written
    from tests.unit.ingestion.test_judge_batch import ENVELOPE, HEADERS, judge, offsets_of
    from tests.unit.ingestion.test_judge_batch import GOOD as GOOD_SAMPLE
    from tests.unit.ingestion.test_protobuf import FULL, SCAN, WRITER, reader

    from headrace.ingestion.domain.avro import Unreadable
    from headrace.messaging.attributes import read_attributes
    from headrace.messaging.record_batch import MalformedBatch, RecordBatch, read_records

HEADER_BYTES = 61
COUNT = slice(57, 61)
EARLY = "1013-01-01T00:00:00Z"
"""Before 1970: its microseconds since then are negative."""


def read_a_record_batch(data: bytes) -> None:
    """The first byte is the number of records, the others are their bytes."""
    batch = bytearray(batch_of(Sent()).data[:HEADER_BYTES]) + data[1:]
    batch[COUNT] = (data[0] if data else 0).to_bytes(4, "big")
    received = RecordBatch("t", 0, 0, memoryview(bytes(batch)))
    try:
        records = decode("t", [received])
    except MalformedBatch:
        return
    read_attributes(records)
    expected = [record for record in read_records(received) if record.offset >= received.first_offset]
    assert [records.record(index) for index in range(len(records))] == expected


def read_json(data: bytes) -> None:
    """Each line is a payload."""
    assert_columns_and_rows_agree(data.split(b"\n"))


def read_protobuf(data: bytes) -> None:
    """One message."""
    assert_columns_and_messages_agree([data])


def read_avro(data: bytes) -> None:
    """One record, by a schema that has each kind of field."""
    assert_columns_and_records_agree(PLAIN, [data])


def read_a_message(data: bytes) -> None:
    """Indexes and a message, by a schema that has each kind of field."""
    assert isinstance(reader().read(data), dict | Unreadable)


def judge_an_event(data: bytes) -> None:
    """Headers by number or name, each with its value, and a payload."""
    provider = atheris.FuzzedDataProvider(data)
    headers = dict(HEADERS)
    for _ in range(provider.ConsumeIntInRange(0, 4)):
        known = [*ENVELOPE, "traceparent", "ce_dataschema"]
        name = provider.PickValueInList(known) if provider.ConsumeBool() else provider.ConsumeUnicode(6)
        name = name.encode(errors="replace").decode()
        headers[name] = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 40))
    value = provider.ConsumeBytes(provider.remaining_bytes())
    assert offsets_of(judge([Sent(0, value, list(headers.items()))])) == [0]


def record_seeds() -> Iterator[bytes]:
    for records in ([Sent()], [Sent(0, b"v", HEADERS), Sent(1, None, [], None)]):
        yield bytes([len(records)]) + bytes(batch_of(*records).data[HEADER_BYTES:])


def json_seeds() -> Iterator[bytes]:
    early = orjson.dumps({**GOOD, "taken": EARLY})
    yield b"\n".join([orjson.dumps(GOOD), early, b'{"id": "p", "radius": 1e400}', b"[1]", b"null"])


def protobuf_seeds() -> Iterator[bytes]:
    yield sample_written(**GOOD)
    yield sample_written(**{**GOOD, "taken": EARLY})
    yield sample_written(id="p", radius=1, depth=None, unknown=b"x")


def avro_seeds() -> Iterator[bytes]:
    yield from written(PLAIN, GOOD_RECORD, {**GOOD_RECORD, "depth": None, "grade": None, "taken": None})
    yield from written(PLAIN, {**GOOD_RECORD, "taken": datetime.fromisoformat(EARLY)})


def message_seeds() -> Iterator[bytes]:
    yield SCAN + message(WRITER, "clinic.Scan", FULL)


def event_seeds() -> Iterator[bytes]:
    structured = b'{"specversion":"1.0","id":"e","source":"s","type":"t","subject":"known","data":'
    yield GOOD_SAMPLE
    yield structured + GOOD_SAMPLE + b"}"


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "records": (read_a_record_batch, record_seeds),
    "json": (read_json, json_seeds),
    "protobuf": (read_protobuf, protobuf_seeds),
    "avro": (read_avro, avro_seeds),
    "messages": (read_a_message, message_seeds),
    "envelopes": (judge_an_event, event_seeds),
}


def main() -> None:
    name, *options = sys.argv[1:]
    target, seeds = TARGETS[name]
    # Integers of machine size wrap, in compiled code silently.
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, folder], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
