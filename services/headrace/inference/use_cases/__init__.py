"""What the inference service does."""
