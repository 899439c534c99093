BACKEND_URL may be the whole URL of an endpoint (`http://localhost:3000/mcp`, `.../sse`), as it stands in the configuration of clients.
