"""Ray Tune around fine-tuning trials."""
