"""The parts that all methods share: checkpoints, processes, inference, metrics, reports."""
