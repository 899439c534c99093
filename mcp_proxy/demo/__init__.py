"""A server, a proxy and a client, to watch what the proxy is for: ``python -m mcp_proxy.demo``."""
