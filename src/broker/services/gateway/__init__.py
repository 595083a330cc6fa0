"""The gateway: accepts messages over mTLS, seals them and appends them durably."""
