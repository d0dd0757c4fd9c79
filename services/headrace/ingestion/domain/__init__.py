"""What a valid sample is, and when a version is cut: pure and synchronous."""
