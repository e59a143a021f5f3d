"""Tune a stack before it meets its provider: the real layers, ten minutes of bad luck, in a few seconds.

Describe the provider by what its dashboard tells, and the workload by what you are about to do, and compare
what you might use.
"""

from __future__ import annotations

import sys
from typing import Any

from dspex_pipe import Breaker, RateLimit, Retry, Timeout, presets
from dspex_pipe.chaos import SseError
from dspex_pipe.simulate import Outage, ProviderModel, SdkRetry, Workload, simulate, table

PROVIDER = ProviderModel(
    median=2,
    p99=12,
    rpm=500,
    outages=[Outage(120, 180), Outage(300, 420, rate=0.3)],  # a minute down; then 30 % of the calls fail
    faults=[SseError(after=0, rate=0.01)],
)
WORKLOAD = Workload(rate=5, duration=600, streaming=0.5)

STACKS: dict[str, list[Any]] = {
    "the SDK's own retries": [SdkRetry()],
    "presets.llm()": presets.llm(),
    "a patient circuit": [
        Timeout(total=60),
        Retry(),
        Breaker(failures=10, consecutive=None, open_max=20),
        RateLimit(rpm=500),
    ],
}


def main() -> None:
    reports = {name: simulate(layers, PROVIDER, WORKLOAD) for name, layers in STACKS.items()}
    print(table(reports))
    print("\nof the calls that began while the provider was down:\n")
    print(table({name: report.during(120, 180) for name, report in reports.items()}))
    print("\n… while 30 % of the calls failed:\n")
    print(table({name: report.during(300, 420) for name, report in reports.items()}))
    print(f"\n{reports['a patient circuit']}")
    for path in sys.argv[1:]:  # python examples/simulate_your_stack.py stack.png
        reports["a patient circuit"].plot(path)


if __name__ == "__main__":
    main()
