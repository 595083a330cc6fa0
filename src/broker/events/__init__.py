"""The log: what is written, where it lies and who may read or change it. The only package that speaks to Redis."""
