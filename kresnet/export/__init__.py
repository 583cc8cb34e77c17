"""From a run to a file that answers requests without kresnet."""
