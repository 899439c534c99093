"""A reverse proxy that keeps the MCP session of its clients while the backend restarts."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mcp-proxy")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
