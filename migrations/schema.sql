-- The read models as every migration together leaves them (a test compares).
-- Times are UTC. `ms` and `seq` are the two halves of a stream id.

-- How far each read model is, per stream; moves in the transaction of its rows.
CREATE TABLE checkpoints (
  projection   VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  stream       VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  ms           BIGINT UNSIGNED NOT NULL DEFAULT 0,
  seq          BIGINT UNSIGNED NOT NULL DEFAULT 0,
  events       BIGINT UNSIGNED NOT NULL DEFAULT 0,
  incarnation  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  epoch        BIGINT UNSIGNED NOT NULL DEFAULT 0,
  state        BLOB NULL,
  halted       VARCHAR(500) NULL,
  held         TINYINT UNSIGNED NOT NULL DEFAULT 0,
  updated_at   DATETIME(3) NOT NULL,
  PRIMARY KEY (projection, stream)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- One row a message; status and attempts are those of its current cycle.
CREATE TABLE messages (
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
  KEY status_queued (status, queued_at),
  KEY client_status_queued (client_id, status, queued_at),
  KEY number_queued (sender_number_hashed, status, queued_at),
  KEY parked_queued (parked, queued_at, client_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- One row a delivery attempt. Keyed by position: no rule of ours can make two events collide.
CREATE TABLE attempts (
  message_id  CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  ms          BIGINT UNSIGNED NOT NULL,
  seq         BIGINT UNSIGNED NOT NULL,
  client_id   VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  cycle       INT UNSIGNED NOT NULL,
  attempt     INT UNSIGNED NOT NULL,
  at          DATETIME(3) NOT NULL,
  actor       VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  channel     VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  succeeded   TINYINT UNSIGNED NOT NULL,
  latency_ms  BIGINT UNSIGNED NOT NULL,
  code        INT NULL,
  error       VARCHAR(500) NULL,
  PRIMARY KEY (message_id, ms, seq)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- Every event as stored, in the order of its stream, hash-chained.
CREATE TABLE audit_log (
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
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- Producers and where their messages go.
CREATE TABLE clients (
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
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- Every certificate our CA signed; expiry is a matter of the clock, not of a row.
CREATE TABLE certificates (
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
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- People who sign in. That e-mails are unique is the registry's decision, not a key's.
CREATE TABLE users (
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
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- Counts per hour of the log's clock and client; each partition has its own rows.
CREATE TABLE statistics (
  stream           VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hour             DATETIME NOT NULL,
  client_id        VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  submitted        BIGINT UNSIGNED NOT NULL DEFAULT 0,
  attempts         BIGINT UNSIGNED NOT NULL DEFAULT 0,
  failed_attempts  BIGINT UNSIGNED NOT NULL DEFAULT 0,
  retries          BIGINT UNSIGNED NOT NULL DEFAULT 0,
  delivered        BIGINT UNSIGNED NOT NULL DEFAULT 0,
  failed           BIGINT UNSIGNED NOT NULL DEFAULT 0,
  discarded        BIGINT UNSIGNED NOT NULL DEFAULT 0,
  parked           BIGINT UNSIGNED NOT NULL DEFAULT 0,
  resent           BIGINT UNSIGNED NOT NULL DEFAULT 0,
  PRIMARY KEY (stream, hour, client_id),
  KEY hour (hour)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- Submit to delivered in the first cycle: messages per bucket of `statistics.BOUNDS_MS`.
CREATE TABLE latencies (
  stream    VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hour      DATETIME NOT NULL,
  bucket    SMALLINT UNSIGNED NOT NULL,
  messages  BIGINT UNSIGNED NOT NULL DEFAULT 0,
  PRIMARY KEY (stream, hour, bucket),
  KEY hour (hour)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;

-- How far the shadow tables of a rebuild are, per stream; no rows while none is going on.
CREATE TABLE rebuilds (
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
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC;
