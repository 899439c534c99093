"""Bytes in, values out: what peers say to each other, with no clock, no I/O and no network imports."""
