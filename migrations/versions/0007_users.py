"""users: people who sign in. That e-mails are unique is the registry's decision, not a key's."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS users (
      user_id        VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      email          VARCHAR(320) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
      role           VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      password_hash  VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      client_ids     MEDIUMTEXT NOT NULL,
      disabled       TINYINT UNSIGNED NOT NULL DEFAULT 0,
      created_at     DATETIME(3) NOT NULL,
      disabled_at    DATETIME(3) NULL,
      password_at    DATETIME(3) NOT NULL,
      changed_ms     BIGINT UNSIGNED NOT NULL,
      changed_seq    BIGINT UNSIGNED NOT NULL,
      PRIMARY KEY (user_id),
      KEY email (email(191))
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE users")
