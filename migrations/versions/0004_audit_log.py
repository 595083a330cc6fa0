"""audit_log: every event as stored, in the order of its stream, hash-chained."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS audit_log (
      stream          VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      ms              BIGINT UNSIGNED NOT NULL,
      seq             BIGINT UNSIGNED NOT NULL,
      type            VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      version         SMALLINT UNSIGNED NOT NULL,
      at              DATETIME(3) NOT NULL,
      actor           VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
      correlation_id  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      causation_id    VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      subject         VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
      client_id       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      data            MEDIUMBLOB NOT NULL,
      envelope        VARBINARY(1024) NOT NULL,
      hash            BINARY(32) NOT NULL,
      previous_hash   BINARY(32) NOT NULL,
      PRIMARY KEY (stream, ms, seq),
      KEY subject (subject),
      KEY client_at (client_id, at),
      KEY at (at)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE audit_log")
