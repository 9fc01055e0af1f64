"""What makes other extensions follow a rotation: one file for each, one call."""
