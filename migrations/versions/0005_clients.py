"""clients: producers and where their messages go."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS clients (
      client_id      VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      domain         VARCHAR(255) NULL,
      status         VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      channel        VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
      target         VARCHAR(2048) NULL,
      registered_at  DATETIME(3) NOT NULL,
      erased_at      DATETIME(3) NULL,
      erased_reason  VARCHAR(500) NULL,
      changed_ms     BIGINT UNSIGNED NOT NULL,
      changed_seq    BIGINT UNSIGNED NOT NULL,
      PRIMARY KEY (client_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE clients")
