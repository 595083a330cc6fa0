"""Delivery: claims messages, hands them to their channel, records what came of it."""
