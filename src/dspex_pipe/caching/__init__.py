"""What may be kept of an answer, for how long, and under which key."""
