"""Reads the journals of earlier versions."""

from typing import Any

EVENTS = {"pruned": "checkpoints_deleted", "lost": "worker_lost"}
KEYS = {
    "before": "startup_seconds",
    "kind": "source",
    "of": "parent_id",
    "until": "segment_end_tokens",
    "learning_rate": "lr",
}
SOURCES = {"drawn": "sampled", "proposed": "suggested", "repeat": "replicate", "audit": "audit"}


def upgraded_event(event: dict[str, Any]) -> dict[str, Any]:
    """Returns an event of any version with the keys and words of the present one."""
    event = {KEYS.get(key, key): value for key, value in event.items()}
    event["event"] = EVENTS.get(event["event"], event["event"])
    if "source" in event:
        event["source"] = SOURCES.get(event["source"], event["source"])
    return event
