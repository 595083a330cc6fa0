"""What the broker decides, without I/O."""
