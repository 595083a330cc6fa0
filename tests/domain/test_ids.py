"""Message ids."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import clock
from broker.domain import ids
from broker.errors import NotFound, ValidationError


@given(st.integers(0, 255))
def test_an_id_is_a_uuid7_that_names_its_partition(partition: int) -> None:
    """Any UUID library reads it; text and bytes are two forms of one id."""
    made = ids.new(partition)
    standard = UUID(bytes=made)
    assert (standard.version, standard.variant) == (7, "specified in RFC 4122")
    assert str(standard) == ids.text(made)
    assert ids.parse(ids.text(made)) == made
    assert ids.partition(made) == partition
    assert abs(ids.created_ms(made) - clock.now_ms()) < 60_000


def test_ids_of_one_process_are_in_order_and_differ() -> None:
    """Ten thousand made in one go, more than fit a millisecond's counter."""
    made = [ids.new(i % 4)[:8] for i in range(10_000)]
    assert made == sorted(set(made))


@pytest.mark.parametrize(
    "text",
    ["", "x", "01a200eb", "01A200EB-C5B7-7000-B85C-E4159D7E0D0", "01a200ebc5b77000b85ce4159d7e0d03",
     "{01a200eb-c5b7-7000-b85c-e4159d7e0d03}", "01a200eb-c5b7-4000-b85c-e4159d7e0d03", None, 7],
)  # fmt: skip
def test_what_is_no_id_is_refused(text: object) -> None:
    """Only the canonical form of a version 7 UUID is one."""
    with pytest.raises(ValidationError, match="message_id"):
        ids.parse(text)


def test_an_id_of_a_partition_that_does_not_exist_is_refused() -> None:
    """It would name keys that are nowhere."""
    with pytest.raises(ValidationError, match="partition"):
        ids.parse(ids.text(ids.new(9)), partitions=4)


@pytest.mark.parametrize(
    "text",
    [
        "01a200eb-c5b7-7000-b85c-e4159d7e0d09",
        "01a200eb-c5b7-4000-b85c-e4159d7e0d03",
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_a_message_that_cannot_be_is_not_found(text: str) -> None:
    """Who asks for a message by a UUID need not know how ours are made; what is none stays refused."""
    with pytest.raises(NotFound):
        ids.find(text, 4)
    with pytest.raises(ValidationError, match="message_id"):
        ids.find(text[:-1], 4)
    made = ids.new(3)
    assert ids.find(ids.text(made), 4) == made
