"""The layers, one file each; no layer imports another."""
