"""Every failure the broker names. An error's docstring is its message; `detail` adds the particulars."""

from __future__ import annotations


class BrokerError(Exception):
    """The broker failed."""

    code = "internal_error"

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        super().__init__(detail or self.message)

    @property
    def message(self) -> str:
        """One sentence for people: the docstring of the class."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    def __str__(self) -> str:
        return f"{self.message} {self.detail}".strip()


class SettingsError(BrokerError):
    """A setting is unknown or invalid."""

    code = "invalid_setting"


class ValidationError(BrokerError):
    """The request is not valid."""

    code = "validation_error"

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class LogUnavailable(BrokerError):
    """The log cannot be reached; whether the write happened is unknown."""

    code = "log_unavailable"


class LogFull(BrokerError):
    """The log is at its high-water mark of memory or disk."""

    code = "log_full"


class LogRefused(LogUnavailable):
    """The log is not the one this process knows: emptied, restored from an older copy or not yet created."""


class UnsafeRedis(BrokerError):
    """This Redis can lose acknowledged messages."""

    code = "unsafe_redis"


class TrustUnproved(BrokerError):
    """The registry of clients and certificates could not be proved fresh."""

    code = "trust_unproved"


class AuthorityUnavailable(BrokerError):
    """This process cannot sign for the certificate authority: it lacks the key or proof of what to sign."""

    code = "ca_unavailable"
    # Mostly a person has to bring something; nobody need ask every second.
    retry_after = 30.0


class InspectionOnly(BrokerError):
    """This system is a copy that runs for inspection: it accepts and delivers nothing."""

    code = "inspection_only"
    # Until a person decides otherwise.
    retry_after = 30.0


class Conflict(BrokerError):
    """The state does not allow this."""

    code = "conflict"


class NotFound(BrokerError):
    """There is no such thing."""

    code = "not_found"


class KeyUnavailable(BrokerError):
    """The key that this ciphertext names is not loaded."""

    code = "key_unavailable"


class KeyErased(BrokerError):
    """The client's keys were erased; what they sealed is unreadable for ever."""

    code = "key_erased"


class Undecryptable(BrokerError):
    """The ciphertext does not belong to this message and client, or was changed."""

    code = "undecryptable"


class UnknownEvent(BrokerError):
    """The history holds an event that this version cannot read."""

    code = "unknown_event"


class StoreUnavailable(BrokerError):
    """The database cannot be reached."""

    code = "store_unavailable"


class LeaseLost(BrokerError):
    """Another process owns this partition now."""

    code = "lease_lost"
