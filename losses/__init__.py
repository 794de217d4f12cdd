"""Pure functions of tensors: one loss per file."""
