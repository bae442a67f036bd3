"""The shipped reference checkpoints: how they are built and pre-trained."""
