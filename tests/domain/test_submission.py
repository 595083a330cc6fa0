"""What a producer may submit."""

from __future__ import annotations

import re
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain import submission
from broker.errors import ValidationError

NUMBER = "+4915200000000"
digits = st.text("0123456789", min_size=6, max_size=14)


@given(st.sampled_from("123456789"), digits)
def test_every_e164_number_is_taken(first: str, rest: str) -> None:
    """`+`, then 7 to 15 digits, the first not 0."""
    assert submission.sender_number(f"+{first}{rest}") == f"+{first}{rest}"


@given(st.text(max_size=20))
def test_nothing_but_e164_is_taken(text: str) -> None:
    """Whatever is not such a number is refused, and the error names field and rule, not the number."""
    if re.fullmatch(r"\+[1-9][0-9]{6,14}", text):
        return
    with pytest.raises(ValidationError) as refused:
        submission.sender_number(text)
    assert refused.value.field == "sender_number"
    assert "E.164" in refused.value.reason


@pytest.mark.parametrize(
    "number",
    ["", "+", "4915200000000", "+0915200000000", "+123456", "+1234567890123456", "+49 152 000", "+49152000000a",
     NUMBER + "\n", "\n" + NUMBER, "+４９15200000000", "+٤٩15200000000", "++4915200000", "+49-15200000"],
)  # fmt: skip
def test_numbers_that_look_right_and_are_not(number: str) -> None:
    """Line ends, other scripts' digits, separators and wrong lengths do not pass."""
    with pytest.raises(ValidationError):
        submission.sender_number(number)


@given(st.text(min_size=1, max_size=1000))
def test_a_body_is_taken_or_refused_by_its_rules(body: str) -> None:
    """1 to 1000 code points, not only white space, no controls but tab and line ends, no lone surrogates."""
    controls = any(unicodedata.category(c) in {"Cc", "Cs"} and c not in "\t\n\r" for c in body)
    try:
        taken = submission.message_body(body)
    except ValidationError as refused:
        assert controls or not body.strip(), refused.reason
    else:
        assert taken == body
        assert not controls
        assert body.strip()


@pytest.mark.parametrize(
    "body", ["", " ", "\n\t ", "\u2003", "x" * 1001, "a\x00b", "a\x1bb", "a\x85b", "\ud800", "a\x7f"]
)
def test_bodies_that_are_refused(body: str) -> None:
    """Each of these is refused with the field's name."""
    with pytest.raises(ValidationError) as refused:
        submission.message_body(body)
    assert refused.value.field == "message_body"


@pytest.mark.parametrize(
    "body", ["x", "x" * 1000, "😀" * 1000, "a\r\nb\tc", "שלום", "<script>", "=1+1", "\u200b."]
)
def test_bodies_that_are_taken(body: str) -> None:
    """Length counts characters; text of any script and any harmless-looking attack is just text."""
    assert submission.message_body(body) == body


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=6))
def test_metadata_is_taken_or_refused_and_never_breaks(value: dict) -> None:
    """Any JSON object passes or is refused by size, depth or Unicode."""
    try:
        assert submission.metadata(value) == value
    except ValidationError as refused:
        assert refused.field == "metadata"
    else:
        assert len(msgspec.json.encode(value)) <= submission.MAX_METADATA


def test_metadata_bombs() -> None:
    """Deep nesting is refused before anything recurses into it; size counts bytes."""
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ValidationError, match="nested"):
        submission.metadata(deep)
    with pytest.raises(ValidationError, match="4096"):
        submission.metadata({"a": "x" * 4096})
    with pytest.raises(ValidationError):
        submission.metadata({"a": "\ud800"})


@pytest.mark.parametrize("key", ["", " a", "a ", "a\n", "ä", "x" * 256, "a\x00"])
def test_idempotency_keys_that_are_refused(key: str) -> None:
    """1 to 255 printable ASCII characters without space at the ends."""
    with pytest.raises(ValidationError):
        submission.idempotency_key(key)


@pytest.mark.parametrize("name", ["", "Demo", "-a", ".a", "a" * 65, "a/b", "a|b", "a b", "ä", "a\n"])
def test_client_names_that_are_refused(name: str) -> None:
    """Names go into keys, paths and records: no separator of any of them passes."""
    with pytest.raises(ValidationError):
        submission.client_name(name)
