"""The message state machine and the retry schedule, by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain import message, retry
from broker.domain.message import (
    Accepted,
    End,
    Ended,
    Erased,
    Failed,
    Hold,
    NeedsPerson,
    OwnSideAway,
    Park,
    Ready,
    Refused,
    Retry,
)
from broker.domain.retry import RetryPolicy
from broker.errors import Conflict

REASONS = st.text(max_size=20)
SECONDS = st.floats(0.001, 1e5, allow_nan=False)
POLICIES = st.builds(
    RetryPolicy,
    schedule=st.sampled_from(["fixed", "exponential"]),
    interval=SECONDS,
    factor=st.floats(1, 100),
    max_interval=SECONDS,
    jitter=st.floats(0, 1),
    max_attempts=st.integers(1, 10),
)
REFUSALS = st.builds(
    Refused, REASONS, st.none() | st.integers(100, 599), st.booleans(), st.none() | st.floats(0, 1e7)
)
ANSWERS = (
    st.builds(Accepted, st.none() | st.integers(200, 299))
    | REFUSALS
    | st.builds(Failed, REASONS)
    | st.builds(OwnSideAway, REASONS)
    | st.builds(NeedsPerson, REASONS)
    | st.just(Erased())
)
EVENTS = (
    "MessageSubmitted", "DeliveryAttempted", "RetryScheduled", "DeliveryDue", "Delivered", "Failed",
    "MessageParked", "ResendRequested", "MessageDiscarded",
)  # fmt: skip


@given(st.lists(ANSWERS, min_size=1, max_size=40), POLICIES)
def test_a_cycle_ends_once_within_its_attempts(answers, policy):
    """Whatever recipients answer, decisions lead through legal states to at most one end, within the maximum."""
    state = message.evolve(None, "MessageSubmitted")
    for answer in answers:
        assert isinstance(state, Ready)
        attempt = state.attempts + 1
        assert attempt <= policy.max_attempts
        decision = message.decide(answer, attempt, policy)
        made = state.attempts
        if isinstance(decision, Retry) or (isinstance(decision, End) and decision.attempted):
            state, made = message.evolve(state, "DeliveryAttempted", 1, attempt), attempt
        match decision:
            case End(outcome=outcome):
                name = {"delivered": "Delivered", "failed": "Failed", "discarded": "MessageDiscarded"}[
                    outcome
                ]
                assert message.evolve(state, name, 1, made) == Ended(1, made, outcome)
                return
            case Retry(delay_ms=delay_ms):
                assert delay_ms >= 1
                state = message.evolve(state, "RetryScheduled", 1, made)
                state = message.evolve(state, "DeliveryDue", 1, made + 1)
            case Park():
                state = message.evolve(state, "MessageParked", 1, made)
                state = message.evolve(state, "DeliveryDue", 1, made + 1)
            case Hold():
                assert isinstance(answer, OwnSideAway)
    assert isinstance(state, Ready)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(1, 3), st.integers(0, 4)), max_size=60))
def test_no_history_has_two_outcomes_in_a_cycle(history):
    """Any events in any order: those that the machine lets pass hold one outcome a cycle and attempts 1..n."""
    state, outcomes, attempts = None, [], []
    for name, cycle, attempt in history:
        try:
            state = message.evolve(state, name, cycle, attempt)
        except Conflict:
            continue
        if isinstance(state, Ended):
            outcomes.append(cycle)
        if name == "DeliveryAttempted":
            attempts.append((cycle, attempt))
    assert outcomes == list(range(1, len(outcomes) + 1))
    for cycle in {cycle for cycle, _ in attempts}:
        numbers = [attempt for one, attempt in attempts if one == cycle]
        assert numbers == list(range(1, len(numbers) + 1))


def test_our_own_side_away_never_counts():
    """⚠ Whatever the attempt, our own side's absence is held, not counted."""
    assert message.decide(OwnSideAway("x"), 99, RetryPolicy(max_attempts=1)) == Hold("x")


def test_erased_clients_messages_are_discarded_without_an_attempt():
    """Nobody can read them any more: the cycle ends, and no attempt is recorded."""
    assert message.decide(Erased(), 1, RetryPolicy()) == End(
        "discarded", attempted=False, reason="the client's keys were erased"
    )


@given(POLICIES, st.integers(1, 2000), st.none() | st.floats(0, 1e12, allow_nan=False))
def test_delays_stay_within_their_bounds(policy, attempt, retry_after):
    """Never negative, never past the ceiling and its jitter, never sooner than a recipient reasonably asked."""
    delay = retry.delay_ms(policy, attempt, retry_after) / 1000
    ceiling = max(policy.max_interval, policy.interval)
    assert 0.001 <= delay <= ceiling * (1 + policy.jitter) + 0.002
    if retry_after is not None:
        assert delay >= min(retry_after, ceiling) - 0.001
    elif policy.schedule == "fixed":
        low, high = policy.interval * (1 - policy.jitter), policy.interval * (1 + policy.jitter)
        assert low - 0.001 <= delay <= max(high, 0.001) + 0.001


@given(POLICIES, st.integers(1, 200))
def test_exponential_delays_do_not_shrink(policy, attempt):
    """Without jitter each wait is at least the one before, up to the ceiling."""
    steady = RetryPolicy("exponential", policy.interval, policy.factor, policy.max_interval)
    assert retry.delay_ms(steady, attempt + 1) >= retry.delay_ms(steady, attempt)


@pytest.mark.parametrize(("attempt", "over"), [(1, False), (4, False), (5, True), (6, True)])
def test_five_attempts_a_cycle_by_default(attempt, over):
    """The default maximum is five."""
    assert retry.exhausted(RetryPolicy(), attempt) is over
