"""What a run is and how it ends: pure decisions."""
