"""The whole program over real sockets on the loopback address."""
