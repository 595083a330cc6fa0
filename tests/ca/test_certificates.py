"""The rules of issuing, renewing and revoking."""

from __future__ import annotations

import msgspec
import pytest

from broker.domain import certificates as rules
from broker.domain.certificates import CertificateEntry
from broker.errors import Conflict, NotFound, ValidationError

NOW = 10_000_000_000
DAY = 24 * 3600 * 1000


def entry(fingerprint: str = "a", **changes) -> CertificateEntry:
    fresh = CertificateEntry(
        fingerprint=fingerprint,
        serial=fingerprint,
        client_id="demo",
        role="producer",
        not_before_ms=0,
        not_after_ms=NOW + 90 * DAY,
        issued_at_ms=0,
    )
    return msgspec.structs.replace(fresh, **changes)


def test_a_client_has_one_active_certificate():
    """A second issue is refused, unless the first has run out or was revoked."""
    assert rules.decide_issue([], entry("b"), now_ms=NOW).issued == entry("b")
    with pytest.raises(Conflict):
        rules.decide_issue([entry("a")], entry("b"), now_ms=NOW)
    ended = entry("a", not_after_ms=NOW)
    change = rules.decide_issue([ended, entry("c", status="revoked")], entry("b"), now_ms=NOW)
    assert [(closed.fingerprint, closed.status) for closed in change.closed] == [("a", "superseded")]


def test_a_renewal_closes_the_old_one_after_the_overlap():
    """Both work for a day, then the new one alone; the overlap never outlasts the old one's own end."""
    change = rules.decide_renew([entry("a")], entry("b"), now_ms=NOW)
    [old] = change.closed
    assert rules.works(old, NOW)
    assert not rules.works(old, NOW + rules.RENEWAL_OVERLAP_MS)
    assert rules.works(change.issued, NOW)
    [at_once] = rules.decide_renew([entry("a")], entry("b"), now_ms=NOW, overlap_ms=0).closed
    assert not rules.works(at_once, NOW)
    [soon] = rules.decide_renew([entry("a", not_after_ms=NOW + 5)], entry("b"), now_ms=NOW).closed
    assert soon.revoked_at_ms == NOW + 5


def test_a_renewal_needs_something_to_renew():
    """After a revocation, or for a stranger, there is nothing; a role is not changed by the way."""
    for existing in ([], [entry("a", status="revoked")], [entry("a", status="superseded")]):
        with pytest.raises(NotFound):
            rules.decide_renew(existing, entry("b"), now_ms=NOW)
    with pytest.raises(Conflict):
        rules.decide_renew([entry("a")], entry("b", role="worker"), now_ms=NOW)
    with pytest.raises(Conflict):
        rules.decide_renew([entry("a")], entry("a"), now_ms=NOW)


def test_a_revocation_closes_everything_that_still_works():
    """Superseded ones in their overlap too; again changes nothing; nobody is not found."""
    overlapping = entry("b", status="superseded", revoked_at_ms=NOW + DAY)
    change = rules.decide_revoke([entry("a"), overlapping], reason="key compromise", now_ms=NOW)
    assert {closed.fingerprint for closed in change.closed} == {"a", "b"}
    for closed in change.closed:
        assert (closed.status, closed.reason, closed.revoked_at_ms) == ("revoked", "keyCompromise", NOW)
        assert not rules.works(closed, NOW)
    assert rules.decide_revoke(change.closed, reason="superseded", now_ms=NOW + 1).closed == ()
    with pytest.raises(NotFound):
        rules.decide_revoke([], reason="superseded", now_ms=NOW)


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "  ",
        "x" * 65,
        " lost",
        "lost\n",
        "Österreich",
        "certificate hold",
        "removeFromCRL",
        "cACompromise",
        "\udc80",
    ],
)
def test_what_is_no_reason(reason: str):
    """Neither words nor one that an end entity can have for good; the refusal says what those are."""
    with pytest.raises(ValidationError) as caught:
        rules.decide_revoke([entry()], reason=reason, now_ms=NOW)
    assert caught.value.field == "reason"
    assert "keyCompromise" in caught.value.reason


@pytest.mark.parametrize("spelt", ["keyCompromise", "key_compromise", "KEY-COMPROMISE", "Key compromise"])
def test_a_reason_has_one_name(spelt: str):
    """However it was spelt, the history says it as RFC 5280 does."""
    assert rules.check_reason(spelt) == "keyCompromise"


@pytest.mark.parametrize("words", ["Laptop lost: #4711", "x" * 64, "test"])
def test_a_reason_in_words(words: str):
    """Is recorded as it was said."""
    closed = rules.decide_revoke([entry()], reason=words, now_ms=NOW).closed
    assert [each.reason for each in closed] == [words]


@pytest.mark.parametrize(
    ("given", "serial", "fingerprint"),
    [("0A:B1", "ab1", "0ab1"), ("ab1", "ab1", "ab1"), ("00", "0", "00")],
)
def test_hex_as_tools_print_it(given: str, serial: str, fingerprint: str):
    """Colons and capitals go; of a serial number the leading zeros too."""
    assert rules.check_hex(given, "serial") == serial
    assert rules.check_hex(given, "fingerprint") == fingerprint
    for wrong in ("", "xyz", "a" * 65, "a b", "\u0661"):
        with pytest.raises(ValidationError):
            rules.check_hex(wrong, "serial")


def test_what_was_taken_back():
    """Revoked, or superseded and past the overlap; running out is another thing."""
    assert not rules.stopped(entry("a"), NOW)
    assert not rules.stopped(entry("a", not_after_ms=NOW - 1), NOW)
    assert rules.stopped(entry("a", status="revoked", revoked_at_ms=NOW), NOW)
    overlapping = entry("a", status="superseded", revoked_at_ms=NOW + 1)
    assert not rules.stopped(overlapping, NOW)
    assert rules.stopped(overlapping, NOW + 1)
