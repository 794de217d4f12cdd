"""What every method's run needs: checkpoints, processes, inference, metrics."""
