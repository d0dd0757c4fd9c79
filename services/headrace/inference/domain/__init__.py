"""Which version answers, and when a rollout goes on or back: pure decisions."""
