"""Every error is the contract's problem document, whoever raises it."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from broker import errors, telemetry
from broker.web import application
from broker.web.problems import Detail, Problem
from support.serving import listening

FIELDS = {"type", "title", "status", "detail", "error", "message", "details", "correlation_id"}
raising: list[BaseException] = []


async def fail(request):
    raise raising[-1]


async def correlated(request):
    return JSONResponse({"id": telemetry.correlation.get()})


async def breaks(request):
    async def parts():
        yield b"half"
        raise RuntimeError("secret")

    return StreamingResponse(parts())


app = application.build(
    [
        Route("/fail", fail),
        Route("/id", correlated),
        Route("/breaks", breaks),
        Route("/ok", lambda _: Response()),
    ],
    role="test",
)


async def ask(path: str, **options) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(options.pop("method", "GET"), path, **options)


async def failed(error: BaseException) -> httpx.Response:
    raising.append(error)
    answer = await ask("/fail")
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == FIELDS
    assert document["status"] == answer.status_code
    assert document["correlation_id"] == answer.headers["x-correlation-id"]
    assert document["message"] == document["detail"]
    assert document["type"].endswith(document["error"])
    return answer


class Odd(errors.BrokerError):
    """Something of ours that no client should read about."""

    code = "odd"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.ValidationError("sender", "is empty"), 400, "validation_error"),
        (Problem("malformed_json", "No."), 400, "malformed_json"),
        (errors.NotFound("No such client."), 404, "not_found"),
        (errors.Conflict("It is active."), 409, "conflict"),
        (errors.KeyErased(), 410, "key_erased"),
        (errors.LogUnavailable("redis at 10.0.0.1"), 503, "log_unavailable"),
        (errors.LogRefused(), 503, "log_unavailable"),
        (errors.LogFull(), 503, "log_full"),
        (errors.TrustUnproved(), 503, "trust_unproved"),
        (errors.StoreUnavailable("mysql at 10.0.0.1"), 503, "store_unavailable"),
        (Odd("secret"), 500, "internal_error"),
        (errors.Undecryptable("secret"), 500, "internal_error"),
        (RuntimeError("secret"), 500, "internal_error"),
        (HTTPException(403, "No."), 403, "forbidden"),
        (HTTPException(418, "No."), 400, "bad_request"),
        (HTTPException(502, "No."), 500, "internal_error"),
    ],
)
async def test_each_error_has_its_status_and_code(error, status, code):
    """503 says when to come back; what is inside us stays there."""
    answer = await failed(error)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "secret" not in answer.text
    assert "10.0.0.1" not in answer.text


async def test_details_name_field_and_reason():
    """Validation errors say which field and why."""
    answer = await failed(errors.ValidationError("sender", "is empty"))
    assert answer.json()["details"] == [{"field": "sender", "reason": "is empty"}]
    answer = await failed(Problem("validation_error", details=[Detail("a", "b")]))
    assert answer.json()["details"] == [{"field": "a", "reason": "b"}]


async def test_a_problem_brings_its_own_headers():
    """Retry-After is rounded up to whole seconds, at least one."""
    answer = await failed(Problem("rate_limit_exceeded", retry_after=1.2, headers={"RateLimit-Limit": "5"}))
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["ratelimit-limit"]) == (
        429,
        "2",
        "5",
    )
    assert (await failed(Problem("overloaded", retry_after=0.0))).headers["retry-after"] == "1"


async def test_unknown_paths_and_methods_are_problems():
    """404 and 405 are documents too; 405 says what is allowed, and a slash too many is no redirect."""
    for path in ("/nowhere", "/ok/"):
        answer = await ask(path)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    answer = await ask("/id", method="POST")
    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("error", [RuntimeError("why"), Odd("why")])
async def test_a_failure_of_ours_is_logged_once_with_its_traceback(error):
    """One line, with the correlation id's request in it; the client sees none of it."""
    with capture_logs() as logs:
        await failed(error)
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert line["event"] == "request_failed"
    assert line["exc_info"] is error


async def test_an_answer_that_breaks_off_is_logged_once():
    """After the first byte nothing can be answered: the client sees a cut answer, and one line is logged."""
    with capture_logs() as logs:
        async with listening(app) as server, httpx.AsyncClient() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"http://127.0.0.1:{server.port}/breaks")
    assert [line["event"] for line in logs] == ["request_failed"]


@pytest.mark.parametrize("given", ["a", "A-b.c_9", "x" * 64])
async def test_a_good_correlation_id_is_kept(given: str):
    """It is echoed, and the application runs under it."""
    answer = await ask("/id", headers={"X-Correlation-ID": given})
    assert answer.headers["x-correlation-id"] == answer.json()["id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "é", "<script>", "a,b"])
async def test_another_correlation_id_is_replaced(given: str):
    """Ours is 32 hex characters, so nothing odd gets into logs and events."""
    answer = await ask("/id", headers={"X-Correlation-ID": given.encode()})
    assert answer.headers["x-correlation-id"] == answer.json()["id"]
    assert len(bytes.fromhex(answer.json()["id"])) == 16


async def test_no_correlation_id_is_given_twice():
    """Requests without one get one each."""
    assert (await ask("/id")).json() != (await ask("/id")).json()


def test_the_document_is_what_the_contract_says():
    """Field by field, as bytes."""
    from broker.web import problems

    assert msgspec.json.decode(problems.document("not_found", correlation_id="abc")) == {
        "type": "urn:broker:problem:not_found",
        "title": "Not Found",
        "status": 404,
        "detail": "Not Found.",
        "error": "not_found",
        "message": "Not Found.",
        "details": [],
        "correlation_id": "abc",
    }
