Clients and servers may speak Streamable HTTP or HTTP+SSE, in any combination.
