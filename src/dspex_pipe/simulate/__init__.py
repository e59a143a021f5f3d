"""What a stack is good for, before it is in production: real layers, virtual time, a modelled provider.

`simulate` leads the calls of a `Workload` through layers to a `ProviderModel`, an hour of them in seconds,
and tells in a `Report` what came of it. `SCENARIOS` are troubles to try a stack in, and `policies` what to
compare it with.
"""

from .callers import NaiveRetry, SdkRetry
from .provider import Outage, ProviderModel
from .report import Change, Report, table
from .run import simulate
from .scenarios import SCENARIOS, Scenario, policies
from .workload import Call, Workload

__all__ = [
    "SCENARIOS",
    "Call",
    "Change",
    "NaiveRetry",
    "Outage",
    "ProviderModel",
    "Report",
    "Scenario",
    "SdkRetry",
    "Workload",
    "policies",
    "simulate",
    "table",
]
