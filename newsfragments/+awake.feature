With few calls at a time the reactor stays awake for a moment when the next event is about to come, on epoll as on uvloop: the median latency is about a third less.
