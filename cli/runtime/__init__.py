"""What a run stands on: processes, signals, files, loggers, the terminal."""
