"""Clients of the official SDKs, through the real proxy, to a real server that is killed again and again."""
