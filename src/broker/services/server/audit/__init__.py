"""The audit API: exports, digests, proofs and verification."""
