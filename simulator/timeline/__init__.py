"""The timeline: the operations of one plan played event by event in SimPy."""

from flopcast.simulator.timeline.events import events
from flopcast.simulator.timeline.fold import Disturbance
from flopcast.simulator.timeline.play import DeadlockError, Timeline, play
from flopcast.simulator.timeline.waterfall import exposed_collectives, exposed_communication_s, streams, waterfall

__all__ = [
    "DeadlockError",
    "Disturbance",
    "Timeline",
    "events",
    "exposed_collectives",
    "exposed_communication_s",
    "play",
    "streams",
    "waterfall",
]
