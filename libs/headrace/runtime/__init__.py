"""What every service process needs around its own work: settings, signals, readiness, drain, clock."""
