"""Reduce: every rank holds a whole tensor and one rank ends with the sum: a broadcast with every arrow turned round.

The chain runs towards the root along the same ring, and sends as much.
"""

from flopcast.collectives.broadcast import cost, sent_bytes

__all__ = ["cost", "sent_bytes"]
