"""What a simulated recipient's target says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain import simulation
from broker.domain.simulation import Rates
from broker.errors import ValidationError


@pytest.mark.parametrize(
    ("target", "rates"),
    [
        (None, Rates()),
        ("", Rates()),
        ("simulated:", Rates()),
        ("success=0.5", Rates(success=0.5)),
        ("simulated:success=0.9, permanent=0.02,delay=20ms,seed=7", Rates(0.9, 0.02, 0.02, 7)),
        ("delay=1.5s,failures=2", Rates(delay=1.5, failures=2)),
    ],
)
def test_rates_are_read(target, rates):
    """Every part is optional, in any order; a delay is in seconds."""
    assert simulation.parse(target) == rates


@pytest.mark.parametrize(
    "target",
    ["success=often", "success=1.1", "success=nan", "success=-0.1", "success=0.9,permanent=0.2", "delay=2h",
     "delay=3601s", "delay=", "seed=x", "seed=", "failures=-1", "failures=1.5", "pigeons=1", "success", "=1"],
)  # fmt: skip
def test_what_is_not_understood_is_refused(target):
    """By the field's name, so that a route is refused when it is made and not at the first message."""
    with pytest.raises(ValidationError) as caught:
        simulation.parse(target)
    assert caught.value.field == "target"


@given(st.text(max_size=60))
def test_any_text_is_rates_or_refused(target):
    """Nothing else comes out of it, and what comes out are rates."""
    try:
        rates = simulation.parse(target)
    except ValidationError:
        return
    assert 0 <= rates.success <= 1
    assert rates.success + rates.permanent <= 1
    assert 0 <= rates.delay <= simulation.MAX_DELAY
