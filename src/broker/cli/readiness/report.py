"""The readiness report: its sections in order, filled from what was measured and nothing else."""

from __future__ import annotations

from broker.cli.readiness import appendices, outlook, quality, results, summary, surroundings
from broker.cli.readiness.document import Block, Heading
from broker.cli.readiness.evidence import Evidence

TITLE = "Message Broker: readiness report"


def blocks(evidence: Evidence) -> list[Block]:
    """The whole report."""
    return [
        Heading(1, TITLE),
        *summary.head(evidence),
        *summary.blocks(evidence),
        *surroundings.blocks(evidence),
        *surroundings.checks(evidence),
        *results.blocks(evidence),
        *quality.blocks(evidence),
        *outlook.blocks(evidence),
        *appendices.blocks(evidence),
    ]
