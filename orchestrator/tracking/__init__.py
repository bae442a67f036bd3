"""Finished stages as MLflow runs. `runs.py` alone imports mlflow."""
