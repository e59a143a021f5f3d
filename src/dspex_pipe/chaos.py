"""The faults that `Chaos` injects: ``from dspex_pipe.chaos import Chaos, Latency, Status``."""

from .faults import (
    DoneWithoutFinish,
    Drip,
    Fault,
    Latency,
    Overload,
    Raise,
    SseError,
    Stall,
    Status,
    Throttle,
    Truncate,
)
from .layers.chaos import Chaos

__all__ = [
    "Chaos",
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
