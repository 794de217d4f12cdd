"""Networks only: images in, scores out."""
