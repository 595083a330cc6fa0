"""Ways to recipients, a file each."""
