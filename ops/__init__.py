"""Numerics that networks, losses and inference share: tensors in, tensors out. ops/ imports nothing of the project."""
