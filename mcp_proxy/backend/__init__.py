"""Effects towards the backend: connections, retries, the one view of whether it is up."""
