"""messages: one row a message; status and attempts are those of its current cycle."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS messages (
      message_id            CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      client_id             VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      sender_number_hashed  CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      encrypted_body        BLOB NOT NULL,
      status                VARCHAR(9) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      parked                TINYINT UNSIGNED NOT NULL DEFAULT 0,
      reason                VARCHAR(500) NULL,
      cycle                 INT UNSIGNED NOT NULL DEFAULT 1,
      attempt_count         INT UNSIGNED NOT NULL DEFAULT 0,
      queued_at             DATETIME(3) NOT NULL,
      delivered_at          DATETIME(3) NULL,
      failed_at             DATETIME(3) NULL,
      next_attempt_at       DATETIME(3) NULL,
      last_error            VARCHAR(500) NULL,
      last_code             INT NULL,
      domain                VARCHAR(255) NULL,
      certificate           CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      correlation_id        VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      stream                VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      submitted_ms          BIGINT UNSIGNED NOT NULL,
      submitted_seq         BIGINT UNSIGNED NOT NULL,
      changed_ms            BIGINT UNSIGNED NOT NULL,
      changed_seq           BIGINT UNSIGNED NOT NULL,
      PRIMARY KEY (message_id),
      KEY client_queued (client_id, queued_at),
      KEY status_queued (status, queued_at),
      KEY queued (queued_at),
      KEY number_hash (sender_number_hashed(16))
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE messages")
