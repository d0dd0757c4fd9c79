"""One transaction each; what they need from outside stands in `ports`."""
