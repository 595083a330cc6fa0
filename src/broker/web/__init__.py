"""What every HTTP surface shares: TLS, serving, problem documents, bodies, health, metrics, identity."""
