"""Side-by-side measurements; each prints the rows that the README shows."""
