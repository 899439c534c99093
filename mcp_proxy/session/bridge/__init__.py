"""Between the revisions with a handshake and the one without: what a message of the one side is on the other."""
