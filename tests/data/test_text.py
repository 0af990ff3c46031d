"""JSON from outside: read as json reads it, refused before a parser could recurse to the interpreter's limit."""

import json

import pytest

from data.pools.text import parse_json


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[" * 100 + b"]" * 100,
        b"[" + b"[1]," * 500 + b"2]",
        b'["' + b"[{" * 500 + b'"]',
        b'["' + rb"\"[" * 500 + b'"]',
        '{"ключ": "значение"}'.encode("utf-16"),
    ],
)
def test_what_is_not_deep_is_read_as_json_reads_it(content: bytes) -> None:
    assert parse_json(content) == json.loads(content)


@pytest.mark.parametrize(
    "content",
    [b"[" * 101 + b"]" * 101, b'{"a":' * 100_000, b'{"' + b"[" * 200 + b'":' + b"[" * 101, b'["' + rb"\"[" * 500_000],
)
def test_what_is_deep_or_torn_is_refused_at_once(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(content)
