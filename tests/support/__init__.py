"""What tests share: waiting for conditions, cutting connections, a log of one's own."""
