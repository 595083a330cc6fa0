"""rebuilds: how far the shadow tables of a rebuild are, per stream; moves in their transactions."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS rebuilds (
      projection   VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      stream       VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      version      INT UNSIGNED NOT NULL,
      phase        VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      cancelled    TINYINT UNSIGNED NOT NULL DEFAULT 0,
      ms           BIGINT UNSIGNED NOT NULL DEFAULT 0,
      seq          BIGINT UNSIGNED NOT NULL DEFAULT 0,
      events       BIGINT UNSIGNED NOT NULL DEFAULT 0,
      total        BIGINT UNSIGNED NOT NULL DEFAULT 0,
      incarnation  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      state        BLOB NULL,
      started_at   DATETIME(3) NOT NULL,
      started_with BIGINT UNSIGNED NOT NULL DEFAULT 0,
      updated_at   DATETIME(3) NOT NULL,
      PRIMARY KEY (projection, stream)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE rebuilds")
