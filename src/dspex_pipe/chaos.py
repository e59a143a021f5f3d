"""The faults that `Chaos` injects: ``from dspex_pipe.chaos import Chaos, Latency, Status``."""

from .layers.chaos import (
    Chaos,
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
