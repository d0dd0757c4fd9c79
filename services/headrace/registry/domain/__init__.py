"""What a version is and when it may be promoted: pure decisions."""
