from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.postgres.queries import load_queries, parse_queries

names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
lines = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30).filter(
    lambda line: not line.startswith("-- name:")
)
texts = st.lists(lines, max_size=4).map(lambda some: "\n".join(some).strip())


@given(st.dictionaries(names, texts, max_size=5))
def test_each_block_is_found_by_its_name(queries: dict[str, str]) -> None:
    file = "".join(f"-- name: {name}\n{text}\n\n" for name, text in queries.items())
    assert dict(parse_queries(file)) == queries


def test_comments_may_stand_before_the_first_name_and_inside() -> None:
    queries = parse_queries("-- What this file is for.\n\n-- name: one\n-- why\nSELECT 1;\n")
    assert dict(queries) == {"one": "-- why\nSELECT 1;"}


def test_sql_before_the_first_name_is_refused() -> None:
    with pytest.raises(ValueError, match="before the first"):
        parse_queries("SELECT 1;\n-- name: one\nSELECT 1;\n")


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="named twice: one"):
        parse_queries("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="two"):
        parse_queries("-- name: one\nSELECT 1;\n")["two"]


@pytest.mark.parametrize("service", ["ingestion", "scheduling", "registry", "inference"])
def test_every_services_query_file_can_be_read(service: str) -> None:
    assert load_queries(f"headrace.{service}.storage")
