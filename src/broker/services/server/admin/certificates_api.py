"""What the OpenAPI document says of /admin/certificates and the revocation list."""

from __future__ import annotations

from typing import Final

from broker.services.server.admin import certificates_wire as wire
from broker.services.server.admin import crl, paging, statuses
from broker.services.server.admin.certificates import ROLES, STATUSES
from broker.web.openapi import Media, Operation
from broker.web.parameters import MAX_LENGTH, parameter

OPERATIONS: Final = [
    Operation(
        method="post",
        path="/admin/certificates/generate",
        summary="Issue a certificate, with a key or for a signing request; 409 if one is active.",
        request=wire.Generate,
        answers={201: wire.Issued},
        errors=statuses.WRITE,
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/certificates/renew",
        summary="Issue a certificate in place of the current one, which works for the overlap yet.",
        request=wire.Renew,
        answers={201: wire.Issued},
        errors=(*statuses.WRITE, 404),
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/certificates/revoke",
        summary="Refuse one certificate, or all of a name's, within a second and on open connections.",
        request=wire.Revoke,
        answers={200: wire.Revoked},
        errors=(400, 401, 403, 404, 413, 415, 503),
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/certificates",
        summary="Certificates, the newest first; those that expire (`expiring`) the soonest first.",
        answers={200: wire.Certificates},
        errors=statuses.READ,
        parameters=[
            parameter(
                "status",
                "`all` unless given; `expiring`: current, and within `certificate_warning_days` of its end.",
                {"type": "string", "enum": list(STATUSES)},
            ),
            parameter("client_id", "Of this client or service.", {"type": "string", "maxLength": MAX_LENGTH}),
            parameter("role", "`all` unless given.", {"type": "string", "enum": list(ROLES)}),
            *paging.DESCRIBED,
        ],
        bearer=True,
    ),
    *(
        Operation(
            method="get",
            path=f"/crl.{name}",
            summary=f"What was taken back before its date: a signed revocation list, {name.upper()}.",
            answers={200: Media(media_type), 304: None},
            errors=(503,),
            certificate=False,
        )
        for name, media_type in (("pem", crl.PEM), ("der", crl.DER))
    ),
]
