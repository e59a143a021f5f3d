"""What `Chaos` injects: each fault is a value that says what happens, and works like a layer."""

from .bodies import DoneWithoutFinish, Drip, SseError, Stall, Truncate
from .calls import Latency, Overload, Raise, Status, Throttle
from .fault import Fault

__all__ = [
    "DoneWithoutFinish",
    "Drip",
    "Fault",
    "Latency",
    "Overload",
    "Raise",
    "SseError",
    "Stall",
    "Status",
    "Throttle",
    "Truncate",
]
