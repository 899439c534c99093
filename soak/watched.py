"""The proxy as its command starts it, with an eye on its reactor: ``python -m soak.watched FILE``.

Once a second a line is added to the file: how many delayed calls there are, and how many objects the garbage collector
knew, and of which types most were, when garbage was last collected, which is done every tenth time.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from typing import IO, Any

COMMON = 25


EVERY = 10


def look(file: IO[str], reactor: Any, seconds: int = 0, kept: int = 0) -> None:
    """Write a line now, and again in a second; every tenth has the types."""
    line: dict[str, Any] = {"delayed": len(reactor.getDelayedCalls()), "objects": kept}
    if seconds % EVERY == 0:
        gc.collect()
        objects = gc.get_objects()
        line["objects"] = len(objects)
        line["types"] = dict(Counter(type(each).__qualname__ for each in objects).most_common(COMMON))
        del objects
    print(json.dumps(line), file=file, flush=True)
    reactor.callLater(1.0, look, file, reactor, seconds + 1, line["objects"])


def main() -> None:
    """Run the proxy."""
    file = open(sys.argv.pop(1), "w")

    if os.environ.get("REACTOR") == "uvloop":  # the proxy would choose it, but it is looked at before
        from mcp_proxy.fast import install

        install()
    from twisted.internet import reactor

    from mcp_proxy.tap import main

    looked: Any = reactor
    looked.callWhenRunning(look, file, looked)
    main()


if __name__ == "__main__":
    main()
