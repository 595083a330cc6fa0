"""The requirement documents' test cases, and what belongs to which section of the report."""

from __future__ import annotations

from typing import Final, NamedTuple


class Section(NamedTuple):
    """Cases of one kind. `prefixes`: the middle of their ids, each with its heading."""

    name: str
    title: str
    prefixes: dict[str, str]


SECTIONS: Final = (
    Section("functional", "Functional", {"P": "Gateway", "M": "Server", "W": "Worker", "PT": "Portal"}),
    Section("integration", "Integration", {"I": "Integration"}),
    Section("load", "Load", {"L": "Load"}),
    Section("security", "Security", {"S": "Security"}),
)

FULL_LENGTH: Final = ("TC-L-001", "TC-L-002", "TC-L-003", "TC-L-004")
"""Load cases whose short form is no evidence for production. The last one's full length is a day's messages, in less
time: it says so itself."""

REGRESSION: Final[dict[str, str]] = {
    "REG-ENVIRONMENT": "Environment variable changes work correctly",
    "REG-PORTS": "Port changes work correctly",
    "REG-DATABASE": "Database configuration changes work correctly",
}
"""What the requirements ask for after a change of configuration; beside the 92."""

TARGETS: Final[dict[str, str]] = {
    "TC-L-001": "3,600 messages in an hour; success ≥ 95 %, average < 1 s, p99 < 5 s",
    "TC-L-002": "6,000 messages in ten minutes; success ≥ 95 %, a queue that does not grow",
    "TC-L-003": "6,000 messages in a minute; success ≥ 90 %, recovery after it",
    "TC-L-004": "100,000 messages a day, none lost, no slower at the end",
    "TC-L-005": "the queue grows in the peak and drains after it, none lost",
    "TC-L-006": "several workers take their parts, none processed twice",
    "TC-L-007": "queries < 2 s, no pool exhausted",
    "TC-L-008": "2 gateways or more share the load",
    "TC-L-009": "3 workers or more without conflicts",
    "TC-L-010": "10 portal users or more at once",
    "TC-L-011": "no connection refused",
}
"""What each load case has to reach."""

SAME_RUN: Final = {"TC-L-006": "TC-L-009", "TC-L-011": "TC-L-007"}
"""Load cases that are shown by another one's run, and have its figures."""

CASES: Final[dict[str, str]] = {
    "TC-P-001": "Submit valid message with proper E.164 phone number",
    "TC-P-002": "Invalid phone number format rejected (e.g., missing +, letters)",
    "TC-P-003": "Invalid message body length rejected (empty or >1000 chars)",
    "TC-P-004": "Request without client certificate rejected",
    "TC-P-005": "Revoked certificate rejected",
    "TC-P-006": "Health check endpoint (/api/v1/health) responds correctly",
    "TC-P-007": "Metrics endpoint (/metrics) exposes Prometheus metrics",
    "TC-P-008": "Redis connection failure handled gracefully (fallback behavior)",
    "TC-P-009": "Main server connection failure handled gracefully",
    "TC-P-010": "Concurrent message submissions work correctly",
    "TC-M-001": "Message registration via /internal/messages/register works",
    "TC-M-002": "Message delivery marking via /internal/messages/deliver works",
    "TC-M-003": "Status updates via /internal/messages/status work",
    "TC-M-004": "User login via /portal/auth/login generates valid JWT",
    "TC-M-005": "Token refresh via /portal/auth/refresh works",
    "TC-M-006": "Get messages via /portal/messages returns user's messages",
    "TC-M-007": "Get profile via /portal/profile returns user data",
    "TC-M-008": "Create user via /admin/users/create (admin only)",
    "TC-M-009": "Generate certificate via /admin/certificates/generate works",
    "TC-M-010": "Revoke certificate via /admin/certificates/revoke works",
    "TC-M-011": "Get statistics via /admin/stats returns system metrics",
    "TC-M-012": "Health check (/health) responds correctly",
    "TC-M-013": "Message encryption/decryption works (AES-256)",
    "TC-M-014": "Phone number hashing works (SHA-256)",
    "TC-M-015": "Role-based access control (RBAC) enforced correctly",
    "TC-W-001": "Single message processing from Redis queue works",
    "TC-W-002": "Retry logic works with 30-second interval",
    "TC-W-003": "Status updated to 'delivered' on successful delivery",
    "TC-W-004": "Status updated to 'failed' after max attempts",
    "TC-W-005": "Concurrent message processing works (multiple workers)",
    "TC-W-006": "Graceful shutdown handles in-flight messages",
    "TC-W-007": "Redis connection recovery after network interruption",
    "TC-W-008": "Main server connection recovery after server restart",
    "TC-W-009": "Max attempts (default: 5) respected and not exceeded",
    "TC-W-010": "Empty queue handled correctly (no errors, continues polling)",
    "TC-PT-001": "User login success redirects to dashboard",
    "TC-PT-002": "User login failure shows error message",
    "TC-PT-003": "User logout clears session and redirects to login",
    "TC-PT-004": "Session expiration redirects to login after timeout",
    "TC-PT-005": "View user messages displays only user's messages",
    "TC-PT-006": "Filter messages by status works (queued, delivered, failed)",
    "TC-PT-007": "Pagination works for large message lists",
    "TC-PT-008": "View profile displays user information",
    "TC-PT-009": "Admin dashboard accessible only to admin users",
    "TC-PT-010": "Admin create user form works",
    "TC-PT-011": "Admin generate certificate form works",
    "TC-PT-012": "Admin revoke certificate form works",
    "TC-PT-013": "Admin view all messages shows all users' messages",
    "TC-PT-014": "Non-admin users cannot access admin pages (403)",
    "TC-PT-015": "Responsive design works on mobile and desktop",
    "TC-I-001": "Complete message delivery flow: Client sends message, then Proxy validates, then Redis queue, then Worker processes, then Main server marks delivered, then Database updated",
    "TC-I-002": "Message retry flow: Worker fails delivery, then Message requeued, then Worker retries after 30s, then Eventually succeeds/fails after max attempts",
    "TC-I-003": "Multiple concurrent flows: 10+ simultaneous messages processed correctly with no data loss",
    "TC-I-004": "Database persistence throughout flow: Message status transitions recorded correctly (queued, then delivered/failed)",
    "TC-I-005": "Status transitions correct: Messages transition from 'queued', then 'delivered' or 'failed' correctly",
    "TC-I-006": "Certificate lifecycle: Generate certificate, then Use certificate to send messages, then Revoke certificate, then Revoked certificate rejected",
    "TC-I-007": "User creation flow: Admin creates user, then User logs in, then User accesses portal API with JWT",
    "TC-I-008": "JWT token lifecycle: Login generates token, then Token valid for API calls, then Token expires, then Refresh generates new token",
    "TC-I-009": "Session management: User logs in, then Session maintained across requests, then Logout clears session",
    "TC-I-010": "Proxy, then Main Server communication: Proxy registers messages via mTLS successfully",
    "TC-I-011": "Worker, then Main Server communication: Worker delivers messages via mTLS successfully",
    "TC-I-012": "Portal, then Main Server communication: Portal API calls authenticated and authorized correctly",
    "TC-I-013": "All components, then Redis: Proxy, Worker, Main Server all interact with Redis queue correctly",
    "TC-I-014": "All components, then MySQL: All database operations from all components work correctly",
    "TC-L-001": "Sustained 1 msg/sec for 1 hour (3,600 messages)",
    "TC-L-002": "Sustained 10 msg/sec for 10 minutes (6,000 messages)",
    "TC-L-003": "Burst 100 msg/sec for 1 minute (6,000 messages)",
    "TC-L-004": "Daily target simulation (100k messages over 24 hours)",
    "TC-L-005": "Queue growth under load",
    "TC-L-006": "Worker processing under load",
    "TC-L-007": "Database performance under load",
    "TC-L-008": "Multiple proxy instances",
    "TC-L-009": "Multiple worker instances",
    "TC-L-010": "Concurrent portal users",
    "TC-L-011": "Concurrent database connections",
    "TC-S-001": "Mutual TLS enforced on proxy",
    "TC-S-002": "Mutual TLS enforced on internal APIs (worker, then main server)",
    "TC-S-003": "Invalid certificates rejected",
    "TC-S-004": "Expired certificates rejected",
    "TC-S-005": "Revoked certificates rejected",
    "TC-S-006": "JWT token validation",
    "TC-S-007": "Invalid JWT tokens rejected",
    "TC-S-008": "Expired JWT tokens handled",
    "TC-S-009": "Message body encryption at rest",
    "TC-S-010": "Message body decryption",
    "TC-S-011": "Phone number hashing",
    "TC-S-012": "Password hashing (bcrypt)",
    "TC-S-013": "Session encryption",
    "TC-S-014": "Users can only access own messages",
    "TC-S-015": "Admins can access all messages",
    "TC-S-016": "Users cannot access admin pages",
    "TC-S-017": "Unauthenticated access rejected",
}


def section(case: str) -> Section:
    """The section that a case belongs to."""
    prefix = case.split("-")[1]
    return next(one for one in SECTIONS if prefix in one.prefixes)
