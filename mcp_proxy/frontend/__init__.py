"""Effects towards clients: routes, guards, streams, status pages."""
