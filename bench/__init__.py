"""What the proxy costs, measured beside nginx: ``python -m bench``. It is a tool of the checkout, not of the wheel."""
