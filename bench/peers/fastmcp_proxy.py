"""FastMCP as a proxy from HTTP to HTTP: ``fastmcp_proxy.py URL PORT``, with FastMCP's own environment."""

import sys

from fastmcp.server import create_proxy

if __name__ == "__main__":
    create_proxy(sys.argv[1]).run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), show_banner=False)
