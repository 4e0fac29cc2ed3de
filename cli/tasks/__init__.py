"""What a model is trained for: loss, head, evaluator and main metric, the same few functions for each task."""
