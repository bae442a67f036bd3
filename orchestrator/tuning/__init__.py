"""Ray Tune and Ray tasks around fine-tuning, probes and ablation: only scheduling, no science."""
