"""Many clients, and a backend that dies again and again: ``python -m soak``. A tool of the checkout, like the bench."""
