"""For tests of layers, ours and yours: virtual time, a scripted upstream, and a conformance kit.

No test needs to sleep: `VirtualIO` has a clock that moves when somebody waits, and `Script` is the other
end of the wire. `check_layer` checks any layer for what the contract promises.
"""

from .conformance import check_layer
from .script import Reply, Script
from .virtual import VirtualIO

__all__ = ["Reply", "Script", "VirtualIO", "check_layer"]
