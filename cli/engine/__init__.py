"""A run: what it builds, trains, saves and evaluates."""
