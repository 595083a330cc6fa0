"""The private certificate authority."""
