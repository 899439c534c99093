"""Watch a client keep its session while its server is killed: ``python -m mcp_proxy.demo``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the demo; return the exit status, 0 only if the client really carried on."""
    try:
        import mcp  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        print(f"The demo needs the MCP SDK ({error}). Install it with:", file=sys.stderr)
        print("    pip install 'mcp-proxy[demo]'", file=sys.stderr)
        return 1
    from mcp_proxy.demo.show import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
