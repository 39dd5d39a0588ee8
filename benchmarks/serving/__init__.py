"""Load on the server's engine: many conversations at once, beside one turn at a time."""
