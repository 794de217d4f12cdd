"""Scribble studio: draw scribbles on pictures in the browser, train, look, correct."""
