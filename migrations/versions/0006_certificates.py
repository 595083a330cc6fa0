"""certificates: every certificate our CA signed; expiry is a matter of the clock, not of a row."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS certificates (
      fingerprint    CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      serial         VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      client_id      VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      role           VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      status         VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      not_before     DATETIME(3) NOT NULL,
      not_after      DATETIME(3) NOT NULL,
      issued_at      DATETIME(3) NOT NULL,
      replaces       CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      replaced_by    CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      overlap_until  DATETIME(3) NULL,
      revoked_at     DATETIME(3) NULL,
      reason         VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
      changed_ms     BIGINT UNSIGNED NOT NULL,
      changed_seq    BIGINT UNSIGNED NOT NULL,
      PRIMARY KEY (fingerprint),
      KEY client (client_id, issued_at),
      KEY serial (serial),
      KEY status_expiry (status, not_after)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE certificates")
