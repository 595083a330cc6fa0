"""The roles, one package each; they never import each other."""
