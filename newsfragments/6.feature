Requests of the MCP endpoints take a path of their own through HTTP, several times as fast; `HTTP_STACK=klein` goes the old way.
With the extra `fast` the proxy runs on uvloop; `REACTOR` chooses.
