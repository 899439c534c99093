"""Make ``mcp-proxy`` and the reactor of ours known to Twisted. Nothing else: twistd imports this for every command."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

mcp_proxy = ServiceMaker(
    "mcp-proxy",
    "mcp_proxy.tap",
    "A reverse proxy that keeps MCP sessions alive while the backend restarts.",
    "mcp-proxy",
)

mcp_proxy_reactor = Reactor("uvloop", "mcp_proxy.fast", "uvloop, with TCP of its own; needs the extra `fast`.")
