"""The proxy, as the console script starts it, for a zygote: ``main`` is the script's."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

REACTOR = "twisted.internet.reactor"

# Forked processes cannot share a reactor. Something that is imported takes it, but uses it only in other programs.
placeholder = ModuleType(REACTOR)
sys.modules[REACTOR] = placeholder
for name in ("mcp_proxy.tap", "mcp_proxy.service", "twisted.application.app", "twisted.scripts.twistd"):
    import_module(name)
assert sys.modules.pop(REACTOR) is placeholder


def main() -> None:
    """Run the proxy."""
    import_module("mcp_proxy.tap").main()
