"""A small MCP server over HTTP+SSE, made with the official SDK: ``python -m mcp_proxy.demo.server``.

It keeps notes in a file, so that they outlive the process, and tells its process id, so that one can see
who answers.
"""

import argparse
import asyncio
import os
import time
from pathlib import Path

# No `from __future__ import annotations` in this module: older SDKs look for the parameter of type Context in
# the annotations themselves.
from mcp.server.fastmcp import Context, FastMCP
from mcp.types import ToolAnnotations
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

STARTED = time.time()
READ_ONLY = ToolAnnotations(readOnlyHint=True)


class Notes:
    """Lines of text in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, text: str) -> int:
        """Append a note; return how many there are now."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(" ".join(text.split()) + "\n")
        return len(self.all())

    def all(self) -> list[str]:
        """Return every note, the oldest first."""
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []


def make_server(host: str, port: int, notes: Notes) -> FastMCP:
    """Return the server, ready to ``run("sse")``."""
    server = FastMCP(
        "notes",
        host=host,
        port=port,
        sse_path="/mcp/sse",
        message_path="/mcp/messages/",
        log_level="WARNING",
    )

    @server.tool()
    def add_note(text: str) -> str:
        """Keep a note. Calling it twice keeps it twice."""
        return f"note number {notes.add(text)}, kept by pid {os.getpid()}"

    @server.tool(annotations=READ_ONLY)
    def list_notes() -> str:
        """List the notes."""
        return "\n".join(notes.all())

    @server.tool(annotations=READ_ONLY)
    async def slow_count(n: int, context: Context) -> str:  # type: ignore[type-arg]
        """Count to n, a quarter of a second for each number, and report progress."""
        for number in range(1, n + 1):
            await context.report_progress(number, n)
            await asyncio.sleep(0.25)
        return f"counted to {n} by pid {os.getpid()}"

    @server.tool(annotations=READ_ONLY)
    def server_info() -> dict[str, float]:
        """Tell which process this is, and since when it runs."""
        return {"pid": os.getpid(), "started": STARTED}

    async def health(request: Request) -> Response:
        """Answer the health checks of a proxy."""
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    server.custom_route("/health", methods=["GET"])(health)
    return server


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m mcp_proxy.demo.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="the port to listen on (default: %(default)s)")
    parser.add_argument(
        "--notes", type=Path, default=Path("notes.txt"), help="the file of the notes (default: %(default)s)"
    )
    arguments = parser.parse_args()
    make_server(arguments.host, arguments.port, Notes(arguments.notes)).run("sse")


if __name__ == "__main__":
    main()
