"""From index and model to a run."""
