"""What a page says after something was done: a closed set, so that no link can put words in our mouth."""

from __future__ import annotations

from typing import Final

PARAMETER: Final = "done"
TEXTS: Final = {
    "password": "Your password was changed. Every other session of yours has ended.",
    "password-later": "Your password was changed. Every other session of yours has ended; "
    "lists show it in a moment.",
    "later": "Done. Lists and pages show it in a moment.",
    "user-created": "The account is there; its owner can sign in.",
    "user-role": "The role was changed. It holds from their next request on.",
    "user-clients": "The clients were changed.",
    "user-password": "The password was reset. Every session of theirs has ended.",
    "user-disable": "The account is disabled. Every session of theirs has ended.",
    "client-registered": "The client is registered. It sends once it has a certificate.",
    "client-routed": "The route was changed. It holds from the next attempt on.",
    "certificate-revoked": "The certificate is revoked. Nobody is let in with it any more.",
    "rebuild-cancelled": "Cancelled. What runs ends at its next step, and the present tables serve on.",
    "resent": "It is on its way again.",
}
