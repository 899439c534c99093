"""The client side of the proxy in memory: real fronts, sessions and registry, no sockets."""
