"""The log: what is written, where it lies, who may read or change it. Alone in speaking to Redis."""
