A reverse proxy for MCP servers that keeps the session of its clients while the server restarts.
