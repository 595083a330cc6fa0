"""The codec: round trips, tolerance in both directions, and one error for everything else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from broker.errors import UnknownEvent
from broker.events import codec, envelope, types, upcasting
from broker.events.positions import Position, at

INTEGERS = st.integers(-(2**63), 2**64 - 1)
BY_TYPE = {
    str: st.text(),
    str | None: st.none() | st.text(),
    bytes: st.binary(),
    bytes | None: st.none() | st.binary(),
    int: INTEGERS,
    int | None: st.none() | INTEGERS,
    bool: st.booleans(),
    list[str]: st.lists(st.text(), max_size=3),
    dict[str, str]: st.dictionaries(st.text(), st.text(), max_size=3),
}


def values_of(field) -> st.SearchStrategy:
    choices = msgspec.inspect.type_info(field.type)
    if isinstance(choices, msgspec.inspect.LiteralType):
        return st.sampled_from(choices.values)
    return BY_TYPE[field.type]


def events_of(kind: type[types.Event]) -> st.SearchStrategy[types.Event]:
    return st.builds(kind, **{field.name: values_of(field) for field in structs.fields(kind)})


KINDS = sorted(types.ALL.values(), key=lambda kind: kind.__name__)
EVENTS = st.sampled_from(KINDS).flatmap(events_of)


@given(EVENTS)
def test_every_event_comes_back_as_it_was(event):
    """Encode, decode: the same, whatever its fields hold."""
    assert codec.decode(codec.tag_of(event), codec.encode(event)) == event


@given(EVENTS, st.lists(st.none() | st.integers(0, 9) | st.text() | st.binary() | st.lists(st.text())))
def test_fields_that_a_newer_version_appended_are_passed_over(event, more):
    """An older reader sees what it knows."""
    array = msgspec.msgpack.decode(codec.encode(event))
    assert codec.decode(codec.tag_of(event), msgspec.msgpack.encode([*array, *more])) == event


@given(EVENTS)
def test_shorter_arrays_of_an_older_version_get_defaults(event):
    """Cut to the required fields, and anywhere between, the rest is the default; shorter is UnknownEvent."""
    fields = structs.fields(event)
    required = sum(field.required for field in fields)
    array = msgspec.msgpack.decode(codec.encode(event))
    tag = codec.tag_of(event)
    for length in range(len(array)):
        data = msgspec.msgpack.encode(array[:length])
        if length < required:
            with pytest.raises(UnknownEvent):
                codec.decode(tag, data)
            continue
        read = codec.decode(tag, data)
        for index, field in enumerate(fields):
            expected = getattr(event, field.name) if index < length else _default(field)
            assert getattr(read, field.name) == expected


def _default(field):
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


TAGS = st.sampled_from(sorted(types.ALL)) | st.text()


@given(
    TAGS,
    st.binary()
    | st.recursive(st.none() | st.integers(0, 99) | st.text(), st.lists).map(msgspec.msgpack.encode),
)
def test_garbage_is_an_unknown_event_and_nothing_else(tag, data):
    """Any tag with any bytes: an event or UnknownEvent."""
    try:
        event = codec.decode(tag, data)
    except UnknownEvent:
        return
    assert type(event).__name__ == upcasting.split(tag)[0]


@given(EVENTS, st.data())
def test_damaged_bytes_are_an_event_of_the_type_or_unknown(event, data):
    """A flipped or missing byte never raises anything but UnknownEvent."""
    raw = bytearray(codec.encode(event))
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(raw), bytes(raw[:index])):
        try:
            read = codec.decode(codec.tag_of(event), damaged)
        except UnknownEvent:
            continue
        assert type(read) is type(event)


@given(st.dictionaries(st.sampled_from([b"t", b"s", b"m", b"d", b"x"]), st.binary()))
def test_any_stream_entry_is_an_event_or_unknown(fields):
    """Missing fields, tags that are no text, damaged envelopes: UnknownEvent."""
    try:
        codec.recorded(codec.stored(Position("0", 1, 0), fields))
    except UnknownEvent:
        return
    raise AssertionError("random bytes do not make a type's name")


CORRELATIONS = (
    st.none()
    | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
    | st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
)


@given(st.integers(0, 2**53), st.text(), CORRELATIONS, st.none() | st.text())
def test_an_envelope_comes_back_as_it_was(moment, actor, correlation, causation):
    """Correlation ids of every acceptable form, those of 15 and 16 characters too."""
    read = envelope.decode(envelope.encode(moment, actor, correlation, causation))
    assert (read.at, read.actor, read.correlation_id, read.causation) == (
        moment,
        actor,
        correlation,
        causation,
    )


@pytest.mark.parametrize("length", [14, 15, 16, 17, 31, 32, 33, 64])
def test_correlation_ids_near_the_size_of_a_uuid(length):
    """None of them is mistaken for the 16 bytes of a UUID."""
    for text in ("f" * length, "F" * length, "x" * length):
        assert envelope.decode(envelope.encode(1, "a", text)).correlation_id == text


def test_an_old_version_is_read_through_its_upcaster(monkeypatch):
    """A tag without decoder goes to its upcaster; one that fails is an UnknownEvent; a newer tag is too."""

    def upcast(array):
        return types.ClientErased(array[0], "unknown then")

    monkeypatch.setitem(upcasting.UPCASTERS, "ClientGone", upcast)
    data = msgspec.msgpack.encode(["demo"])
    assert codec.decode("ClientGone", data) == types.ClientErased("demo", "unknown then")
    for bad in (msgspec.msgpack.encode([]), b"\xc1", msgspec.msgpack.encode("demo")[:1]):
        with pytest.raises(UnknownEvent):
            codec.decode("ClientGone", bad)
    with pytest.raises(UnknownEvent):
        codec.decode("ClientErased.2", data)


def test_a_stored_entry_keeps_its_bytes():
    """What the chain covers is what lay in the stream, not a second encoding."""
    event = types.Delivered("demo", 1, 1)
    # 1 written as a 32-bit integer: valid msgpack that no encoder of ours would write.
    data = b"\x93\xa4demo\x01\xd2\x00\x00\x00\x01"
    fields = {b"t": b"Delivered", b"s": b"s", b"m": envelope.encode(1, "a"), b"d": data}
    recorded = codec.recorded(codec.stored(at("0", b"5-1"), fields))
    assert recorded.event == event
    assert recorded.stored.data == data != codec.encode(event)
