Calls one at a time are answered a third sooner on the epoll reactor, which looks for the next event for a moment before it sleeps.
