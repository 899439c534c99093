"""The state of one client's session, and what happens to it when either side goes away."""
