"""Questions put to a model, and its answers judged."""
