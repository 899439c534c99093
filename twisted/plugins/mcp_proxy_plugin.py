"""Make ``mcp-proxy`` known to ``twistd``. Nothing else: twistd imports this file for every command."""

from twisted.application.service import ServiceMaker

mcp_proxy = ServiceMaker(
    "mcp-proxy",
    "mcp_proxy.tap",
    "A reverse proxy that keeps MCP sessions alive while the backend restarts.",
    "mcp-proxy",
)
