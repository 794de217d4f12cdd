"""Numerics that networks, losses and inference share: tensors in, tensors out. Nothing of the project is imported here."""
