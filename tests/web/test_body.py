"""Bodies: bounded, of the right type, and JSON that every reader understands alike."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.web import body
from broker.web.problems import ClientDisconnected, Detail, Problem


class Message(msgspec.Struct, forbid_unknown_fields=True):
    sender: Annotated[str, msgspec.Meta(pattern=r"^\+[0-9]+$")]
    count: Annotated[int, msgspec.Meta(ge=1)]
    tags: list[str] = []


class Duplicate(Exception):
    pass


def reference(raw: bytes) -> Any:
    """Strict JSON by the standard library's slower means. Raises ValueError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise Duplicate
        return dict(items)

    text = raw.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("byte order mark")
    value = json.loads(text, object_pairs_hook=pairs)
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates fail here
    return value


def duplicated(raw: bytes) -> bool | None:
    """Whether the reference sees a key twice; None when it is not strict JSON for another reason."""
    try:
        reference(raw)
    except Duplicate:
        return True
    except ValueError:
        return None
    return False


keys = st.sampled_from(["a", "b", ":", '"', "\\", '":', 'a":1,"a', "é", "\u0000", ""])
scalars = st.none() | st.booleans() | st.integers(-9, 9) | keys


@st.composite
def documents(draw, depth: int = 3) -> str:
    """JSON text whose objects may have a key twice, spelled differently, with colons and quotes in strings."""

    def text(value: str) -> str:
        return draw(
            st.sampled_from([json.dumps(value), json.dumps(value, ensure_ascii=False), escaped(value)])
        )

    kind = draw(st.sampled_from(["scalar", "object", "array"])) if depth else "scalar"
    if kind == "scalar":
        value = draw(scalars)
        return text(value) if isinstance(value, str) else json.dumps(value)
    items = [draw(documents(depth - 1)) for _ in range(draw(st.integers(0, 4)))]
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if kind == "array":
        return "[" + f"{space},".join(items) + "]"
    return "{" + ",".join(f"{text(draw(keys))}{space}:{space}{item}" for item in items) + "}"


def escaped(value: str) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in value) + '"'


@given(documents())
@example('{"a":1,"\\u0061":2}')
@example('{"a:b":1,"a":{"a":":"}}')
@example('{"":1,"":2}')
@example('[{"a":":","a":1}]')
def test_no_duplicate_key_slips_through_and_no_other_is_refused(text: str):
    """For every document the verdict is that of a reference that looks at each pair."""
    raw = text.encode()
    expected = duplicated(raw)
    assert expected is not None
    if expected:
        with pytest.raises(Problem) as caught:
            body.parse(raw)
        assert caught.value.code == "malformed_json"
    else:
        assert body.parse(raw) == reference(raw)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\u0d8aeb1 \ufeff', max_size=40).map(str.encode))
@example(b'"\\ud800"')
@example(b'"\\ud800abcdef"')
@example(b'"\\ud800\\u0061"')
@example(b'{"\\udc00":1}')
def test_rubbish_is_a_problem_and_never_an_error(raw: bytes):
    """Whatever the bytes, the outcome is a value that the reference agrees with, or 400 `malformed_json`."""
    try:
        outcome = body.parse(raw)
    except Problem as problem:
        outcome = problem
    if isinstance(outcome, Problem):
        assert outcome.code == "malformed_json"
    else:
        assert outcome == reference(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"a": NaN}',
        b"[Infinity]",
        b"1e999",
        b"[1,]",
        b"{'a': 1}",
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\ud83d x"}',
        b'{"a": "x\x00"}',
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "a": 1}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 40 + b"]" * 40,
        b"1" * 5000,
    ],
)
def test_what_is_not_strict_json_is_malformed(raw: bytes):
    """400 `malformed_json` for each, before any field is looked at."""
    with pytest.raises(Problem) as caught:
        body.Reader(Message).decode(raw)
    assert caught.value.code == "malformed_json"


def test_every_bad_field_is_named():
    """Missing, unknown and wrong fields are all in the details, values are not."""
    with pytest.raises(Problem) as caught:
        body.Reader(Message).decode(b'{"sender": "secret", "tags": ["a", 2], "extra": 1}')
    assert caught.value.code == "validation_error"
    assert {detail.field for detail in caught.value.details} == {"sender", "count", "tags[1]", "extra"}
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"x"'])
def test_another_shape_is_a_validation_error(raw: bytes):
    """JSON that is no object is understood and refused."""
    with pytest.raises(Problem) as caught:
        body.Reader(Message).decode(raw)
    assert caught.value.code == "validation_error"
    assert len(caught.value.details) == 1


def test_values_read_once_can_be_converted():
    """Lines of a batch are parsed strictly and then converted, with the same verdicts."""
    reader = body.Reader(Message)
    raw = b'{"sender": "+49", "count": 2}'
    assert reader.convert(body.parse(raw)) == reader.decode(raw) == Message("+49", 2)
    with pytest.raises(Problem):
        reader.convert(body.parse(b'{"sender": "+49", "count": 0}'))


def test_lines_are_split_and_bounded():
    """LF or CRLF end a line, blank lines are none, and there is a bound."""
    assert body.split_ndjson(b'{"a":1}\r\n\n  \n{"a":2}', 2) == [b'{"a":1}\r', b'{"a":2}']
    assert body.split_ndjson(b"", 2) == []
    assert body.split_ndjson(b"\r\n" * 1_000_000 + b" 1\r", 2) == [b"1\r"]
    with pytest.raises(Problem):
        body.split_ndjson(b"1\n2\n3\n", 2)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'{"messages":[]}', []),
        (b' {\t"mess\\u0061ges" :\r\n [ {"a": [1, 2]} , "}", 7 ] }\n', [b'{"a": [1, 2]}', b'"}"', b"7"]),
    ],
)
def test_elements_are_split(raw: bytes, found: list[bytes]):
    """As they stand, whatever they hold."""
    assert [bytes(element) for element in body.elements(raw, "messages")] == found


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"", "malformed_json", None),
        (b'{"messages":[]', "malformed_json", None),
        (b'{"messages":[]}x', "malformed_json", None),
        (b'{"messages":[1,]}', "malformed_json", None),
        (b'{"messages":[\xff]}', "malformed_json", None),
        (b'{"messages":[1],"messages":[1]}', "malformed_json", None),
        (b'{"messages":[1],"mess\\u0061ges":[]}', "malformed_json", None),
        (b'{"messages":' + b"[" * 100_000, "malformed_json", None),
        (b"[]", "validation_error", ""),
        (b"{}", "validation_error", "messages"),
        (b'{"messages":{}}', "validation_error", "messages"),
        (b'{"messages":[],"more":1}', "validation_error", "more"),
    ],
)
def test_what_is_no_object_of_one_array(raw: bytes, code: str, field: str | None):
    with pytest.raises(Problem) as raised:
        body.elements(raw, "messages")
    assert raised.value.code == code
    assert [detail.field for detail in raised.value.details] == ([] if field is None else [field])


def test_the_sender_does_not_choose_how_long_the_answer_is():
    """Twenty faults are told, and that there are more."""
    raw = b'{"sender":"+49",' + b",".join(b'"k%d":1' % n for n in range(5000)) + b"}"
    for read in (body.Reader(Message).decode, lambda given: body.elements(given, "messages")):
        with pytest.raises(Problem) as raised:
            read(raw)
        details = raised.value.details
        assert (len(details), details[-1]) == (body.MAX_DETAILS + 1, Detail("", "and more"))


def scope(**headers: str) -> dict[str, Any]:
    return {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]}


@pytest.mark.parametrize(
    "value",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_the_right_type_is_taken(value: str):
    """Case and a UTF-8 charset make no difference."""
    assert body.media_type(scope(content_type=value), [body.JSON, body.NDJSON]) == body.JSON


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": "text/plain"},
        {"content_type": "application/jsonx"},
        {"content_type": "application/json; charset=latin-1"},
        {"content_type": "application/json; charset=utf-8; charset=utf-16"},
        {"content_type": "application/json", "content_encoding": "gzip"},
    ],
)
def test_another_type_is_415(headers: dict[str, str]):
    """No type, another type, charset or coding."""
    with pytest.raises(Problem) as caught:
        body.media_type(scope(**headers), [body.JSON])
    assert caught.value.code == "unsupported_media_type"


def arriving(*parts: bytes, cut: bool = False):
    """A receive function, and how many messages were taken from it."""
    messages = [
        {"type": "http.request", "body": part, "more_body": cut or index < len(parts) - 1}
        for index, part in enumerate(parts)
    ] + [{"type": "http.disconnect"}]
    taken: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        taken.append(messages[len(taken)])
        return taken[-1]

    return receive, taken


async def test_a_body_is_put_together():
    """Up to the bound, in one piece or many."""
    assert await body.read(scope(), arriving(b"abc")[0], 3) == b"abc"
    assert await body.read(scope(), arriving(b"a", b"b", b"", b"c")[0], 3) == b"abc"


async def test_too_large_a_body_is_refused_early():
    """By its declared length before anything is read, else at the first piece past the bound."""
    receive, taken = arriving(b"abcd")
    with pytest.raises(Problem) as caught:
        await body.read(scope(content_length="4"), receive, 3)
    assert (caught.value.code, taken) == ("body_too_large", [])
    receive, taken = arriving(b"ab", b"cd", b"ef", b"gh")
    with pytest.raises(Problem):
        await body.read(scope(), receive, 3)
    assert len(taken) == 2
    with pytest.raises(Problem):
        await body.read(scope(), arriving(b"abcd")[0], 3)


async def test_a_body_that_never_ends_is_no_body():
    """A client that leaves raises, so that half a body is never taken for a whole one."""
    with pytest.raises(ClientDisconnected):
        await body.read(scope(), arriving(b"half", cut=True)[0], 100)
    with pytest.raises(ClientDisconnected):
        await body.read(scope(), arriving()[0], 100)
