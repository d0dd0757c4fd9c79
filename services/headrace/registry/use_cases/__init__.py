"""What the registry does, one transaction each."""
