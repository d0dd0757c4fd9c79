"""What the service does, one transaction each."""
