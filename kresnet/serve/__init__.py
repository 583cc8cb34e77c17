"""Answer requests from an export alone."""
