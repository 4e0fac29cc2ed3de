"""The commands: what they parse, call and print."""
