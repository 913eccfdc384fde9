"""The routes: who may use which, what stands on every answer, and what hostile requests get."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any, get_args

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.world import Caller, FakeRuns, World, chat, finish, says
from tightrope.gateway.app import ROUTES, Rule, Settings
from tightrope.gateway.errors import ENTRY_BY_CODE, of_finish
from tightrope.gateway.keys import Principal, without_keys
from tightrope.model.errors import InvalidInput, NotFound, Rejected, StoreFailed, TightropeBug
from tightrope.model.ids import TenantId
from tightrope.model.key import Role
from tightrope.model.outcome import FailureKind, Outcome, Refusal
from tightrope.model.slo import Slo
from tightrope.runtime.client import Message, RunHandle, RunRequest

ROLES: tuple[Role, ...] = get_args(Role)
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def code(response: httpx.Response) -> str:
    """The code of an error, after checking that its body and headers are whole."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    entry = ENTRY_BY_CODE[error["code"]]
    assert response.status_code == entry.status
    assert error["message"].endswith(entry.next)
    assert response.headers["x-should-retry"] == ("true" if entry.is_retryable else "false")
    assert ("retry-after-ms" in response.headers) == ("retry-after" in response.headers) == entry.is_retryable
    assert response.headers["x-request-id"]
    return str(error["code"])


# --- routes and roles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", sorted({rule.path for rule in ROUTES}))
async def test_the_application_has_the_routes_of_the_table_and_no_others(path: str, method: str) -> None:
    rules = {(rule.path, rule.method) for rule in ROUTES}
    async with World().client("admin:shop") as client:
        response = await client.request(method, path)
    has_route = (path, "GET" if method == "HEAD" else method) in rules
    assert (response.status_code != 405) == has_route


@pytest.mark.parametrize("role", [*ROLES, None])
@pytest.mark.parametrize("rule", ROUTES, ids=lambda rule: rule.action)
async def test_each_role_gets_its_routes_and_no_others(rule: Rule, role: Role | None) -> None:
    world = World()
    body = {"model": "small", "prompt": "x"} if rule.action == "completion" else chat("small")
    async with world.client(f"{role}:shop" if role else "") as client:
        response = await client.request(rule.method, rule.path, json=body if rule.method == "POST" else None)
    if rule.roles is None or role in rule.roles:
        assert response.status_code == 200
    else:
        assert code(response) == ("role_forbidden" if role else "invalid_api_key")
        assert not world.runs.requests


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/models/", "/v1/models/small", "/v1/embeddings", "/docs", "/metrics/"]
)
async def test_there_is_nothing_elsewhere(path: str) -> None:
    async with World().client("admin:shop") as client:
        assert code(await client.get(path)) == "route_not_found"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_refused_with_those_that_exist(method: str) -> None:
    async with World().client() as client:
        response = await client.request(method, "/v1/chat/completions")
    assert code(response) == "method_not_allowed"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": ""}, {"authorization": "Bearer x"}, {"authorization": "x" * 999}]
)
async def test_every_refused_key_gets_the_same_answer(headers: dict[str, str]) -> None:
    async with World().client("") as client:
        response = await client.get("/v1/models", headers=headers)
        reference = await client.get("/v1/models")
    assert code(response) == "invalid_api_key"
    assert response.content == reference.content


async def test_two_keys_are_no_key() -> None:
    headers = [("authorization", "Bearer tenant:shop"), ("authorization", "Bearer admin:shop")]
    async with World().client("") as client:
        assert code(await client.get("/v1/models", headers=headers)) == "invalid_api_key"


async def test_without_keys_the_one_tenant_is_local() -> None:
    world = World(authenticate=without_keys)
    async with world.client("") as client:
        assert (await client.get("/v1/models")).json()["data"] == []
        assert (await client.get("/metrics")).status_code == 200


# --- what belongs to whom --------------------------------------------------------------------------------


async def test_models_lists_what_the_contract_lists() -> None:
    async with World().client() as client:
        listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [(row["id"], row["object"]) for row in listed["data"]] == [
        ("small", "model"),
        ("workflow/rag", "model"),
    ]


@pytest.mark.parametrize(
    "model", ["big", "rag", "workflow/", "workflow/none", "model/small", "workflow/small", "SMALL"]
)
async def test_other_names_do_not_exist(model: str) -> None:
    world = World()
    response = await world.post(chat(model))
    assert (code(response), response.json()["error"]["param"]) == ("model_not_found", "model")
    assert not world.runs.requests


async def test_another_tenant_gets_the_same_404_for_what_exists_and_what_does_not() -> None:
    async with World().client("tenant:research") as client:
        there = await client.post("/v1/chat/completions", json=chat("workflow/rag"))
        nowhere = await client.post("/v1/chat/completions", json=chat("workflow/nowhere"))
    assert code(there) == code(nowhere) == "model_not_found"
    assert there.content == nowhere.content


async def test_the_tenant_comes_from_the_key_alone() -> None:
    world = World()
    await world.post(
        chat(user="research", metadata={"tenant": "research"}), {"x-tightrope-tenant": "research"}
    )
    assert world.runs.requests[0].tenant == "shop"


# --- a call ----------------------------------------------------------------------------------------------


async def test_a_workflow_is_called_by_its_name_and_a_model_by_its_kind() -> None:
    world = World()
    await world.post(chat("workflow/rag"))
    await world.post(chat("small"))
    async with world.client() as client:
        await client.post("/v1/completions", json={"model": "small", "prompt": "x"})
    assert [request.workflow for request in world.runs.requests] == ["rag", "model/small", "completion/small"]
    assert world.runs.requests[0].inputs.messages == (Message("user", "How are you?"),)
    assert world.runs.requests[2].inputs.prompt == "x"


async def test_an_answer_carries_its_run_its_target_and_its_times() -> None:
    world = World()
    response = await world.post(chat(stream=True), {"x-request-id": "abc-1"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == "abc-1" == world.runs.requests[0].request_id
    assert response.headers["x-tightrope-run"] == "run_1"
    assert response.headers["x-tightrope-slo"] == "ttft=1200ms, e2e=10s, attain=95%"
    assert re.fullmatch(
        r"auth;dur=[\d.]+, admit;dur=[\d.]+, queue;dur=12\.0, ttft;dur=[\d.]+",
        response.headers["server-timing"],
    )
    assert len(world.metrics.overheads) == 1


async def test_the_timing_header_can_be_switched_off() -> None:
    response = await World(settings=Settings(has_timing_header=False)).post()
    assert response.status_code == 200
    assert "server-timing" not in response.headers


async def test_without_streaming_only_the_end_is_promised() -> None:
    assert (await World().post()).headers["x-tightrope-slo"] == "e2e=10s, attain=95%"
    assert (await World().post(chat("small"))).headers["x-tightrope-slo"] == "none"


async def test_a_hint_tightens_the_target_down_to_the_floor() -> None:
    world = World()
    response = await world.post(chat(stream=True), {"x-tightrope-slo-ttft-ms": "100"})
    assert response.headers["x-tightrope-slo"] == "ttft=400ms, e2e=10s, attain=95%"
    assert world.runs.requests[0].slo == Slo(ttft_s=0.4, e2e_s=10.0)


async def test_without_a_hint_the_contract_is_left_to_the_runtime() -> None:
    world = World()
    await world.post()
    assert (world.runs.requests[0].slo, world.runs.requests[0].deadline_s) == (None, 60.0)


@pytest.mark.parametrize(
    ("headers", "is_streamed", "deadline_s"),
    [
        ({"x-tightrope-deadline-ms": "5000"}, True, 5.0),
        ({"x-tightrope-deadline-ms": "3600000"}, True, 60.0),
        ({"x-litellm-timeout": "30"}, False, 30.0),
        ({"x-stainless-read-timeout": "600"}, False, 60.0),
        ({"x-stainless-read-timeout": "7.5"}, False, 7.5),
        ({"x-stainless-read-timeout": "7.5"}, True, 60.0),
    ],
)
async def test_patience_only_shortens(headers: dict[str, str], is_streamed: bool, deadline_s: float) -> None:
    world = World()
    await world.post(chat(stream=is_streamed), headers)
    assert world.runs.requests[0].deadline_s == deadline_s


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "naïve", "a/b"])
async def test_a_request_id_that_is_not_plain_is_replaced(given: str) -> None:
    response = await World().post(headers={"x-request-id": given.encode()})  # type: ignore[dict-item]
    assert UUID7.fullmatch(response.headers["x-request-id"])


async def test_new_request_ids_differ_and_sort_by_time() -> None:
    ids = [(await World().post()).headers["x-request-id"] for _ in range(3)]
    stamps = [uuid.UUID(text).int >> 80 for text in ids]
    assert len(set(ids)) == 3
    assert stamps == sorted(stamps)


async def test_every_answer_has_a_request_id() -> None:
    world = World()
    async with world.client() as client:
        for method, path in (
            ("GET", "/healthz"),
            ("GET", "/nowhere"),
            ("PUT", "/metrics"),
            ("POST", "/v1/completions"),
        ):
            response = await client.request(method, path, headers={"x-request-id": "mine"})
            assert response.headers["x-request-id"] == "mine"


async def test_health_and_readiness_say_only_whether() -> None:
    world = World()
    async with world.client("") as client:
        assert (await client.get("/healthz")).text == "ok\n"
        assert (await client.get("/readyz")).status_code == 200
    world.is_ready = False
    async with world.client("") as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "not ready\n")


async def test_metrics_come_in_their_own_format() -> None:
    async with World().client("metrics:shop") as client:
        answer = await client.get("/metrics")
    assert (answer.text, answer.headers["content-type"]) == ("tightrope_up 1\n", "text/plain; version=0.0.4")


# --- errors ----------------------------------------------------------------------------------------------


def ends(outcome: Outcome, **why: Any) -> World:
    return World(FakeRuns(says((), finish(outcome, **why))))


def raising(error: Exception) -> World:
    def script(_: RunHandle, __: RunRequest) -> None:
        raise error

    return World(FakeRuns(script))


FAILED = Outcome.FAILED
LONG = chat(messages=[{"role": "user", "content": "x" * 200}])
TINY = Settings(max_body_bytes=100, max_header_bytes=300)

ANSWERS_BY_CODE: dict[str, list[tuple[World, object, dict[str, str]]]] = {
    "invalid_request": [
        (World(), b"{", {}),
        (raising(InvalidInput("input.question is missing")), None, {}),
        (ends(FAILED, failure=FailureKind.BAD_REQUEST, workflow="model/small@1"), None, {}),
    ],
    "bad_header": [(World(), None, {"x-tightrope-slo-ttft-ms": "soon"})],
    "ambiguous_priority": [(World(), chat(priority=1), {})],
    "unsupported_parameter": [(World(), chat(tools=[{}]), {})],
    "context_too_long": [(ends(FAILED, failure=FailureKind.CONTEXT_TOO_LONG), None, {})],
    "invalid_api_key": [(World(authenticate=lambda _: None), None, {})],
    "role_forbidden": [(World(authenticate=lambda _: Principal(TenantId("shop"), "metrics")), None, {})],
    "model_not_found": [(World(), chat("nothing"), {}), (raising(NotFound("rag")), None, {})],
    "body_too_large": [(World(settings=TINY), LONG, {})],
    "unsupported_media_type": [(World(), None, {"content-type": "text/plain"})],
    "headers_too_large": [(World(settings=TINY), None, {"x-long": "x" * 300})],
    "rate_limited": [
        (raising(Rejected("rate_limited", "100 runs", 2.0)), None, {}),
        (ends(Outcome.REJECTED, refusal=Refusal.TOO_MANY_RUNS), None, {}),
    ],
    "queue_full": [(ends(Outcome.REJECTED, refusal=Refusal.QUEUE_FULL), None, {})],
    "internal_error": [
        (raising(RuntimeError("boom")), None, {}),
        (raising(TightropeBug("invariant")), None, {}),
        (raising(StoreFailed("disk")), None, {}),
        (ends(FAILED), None, {}),
    ],
    "replica_lost": [(ends(FAILED, failure=FailureKind.REPLICA_LOST), None, {})],
    "engine_error": [
        (ends(FAILED, failure=FailureKind.ENGINE_ERROR, message="the engine answered 500"), None, {}),
        (ends(FAILED, failure=FailureKind.STALLED), None, {}),
    ],
    "bad_output": [(ends(FAILED, failure=FailureKind.BAD_OUTPUT), None, {})],
    "node_failed": [
        (ends(FAILED, failure=FailureKind.CODE_ERROR), None, {}),
        (ends(FAILED, failure=FailureKind.BAD_INPUT), None, {}),
        (ends(FAILED, failure=FailureKind.TIMEOUT), None, {}),
        (ends(FAILED, failure=FailureKind.BAD_REQUEST), None, {}),
    ],
    "no_replica": [(ends(Outcome.REJECTED, refusal=Refusal.NO_REPLICA, retry_after_s=7.2), None, {})],
    "draining": [
        (ends(Outcome.REJECTED, refusal=Refusal.DRAINING), None, {}),
        (ends(Outcome.CANCELLED, message="the server stops"), None, {}),
    ],
    "deadline_exceeded": [
        (ends(Outcome.EXPIRED), None, {}),
        (ends(FAILED, failure=FailureKind.EXPIRED), None, {}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("expected", ANSWERS_BY_CODE)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_each_failure_has_its_code(expected: str, is_streamed: bool) -> None:
    for world, body, headers in ANSWERS_BY_CODE[expected]:
        if is_streamed and not isinstance(body, bytes):
            body = {**(body if isinstance(body, dict) else chat()), "stream": True}
        assert code(await world.post(body, headers)) == expected


def test_every_code_of_the_catalogue_is_produced_by_a_test() -> None:
    elsewhere = {"route_not_found", "method_not_allowed"}
    assert {*ANSWERS_BY_CODE, *elsewhere} == set(ENTRY_BY_CODE)


def test_every_entry_says_what_to_do() -> None:
    for entry in ENTRY_BY_CODE.values():
        assert entry.message
        assert entry.next.endswith(".")


@pytest.mark.parametrize("failure", [*FailureKind, None])
@pytest.mark.parametrize("outcome", Outcome)
def test_every_end_of_a_run_has_an_answer(outcome: Outcome, failure: FailureKind | None) -> None:
    for refusal in (*Refusal, None):
        assert of_finish(finish(outcome, failure=failure, refusal=refusal)).entry.status >= 400


@pytest.mark.parametrize(
    ("retry_after_s", "ms", "s"),
    [(0.0, "1000", "1"), (0.2, "200", "1"), (7.2, "7200", "8"), (999.0, "60000", "60")],
)
async def test_retryable_answers_say_when(retry_after_s: float, ms: str, s: str) -> None:
    response = await raising(Rejected("queue_full", "full", retry_after_s)).post()
    assert (response.headers["retry-after-ms"], response.headers["retry-after"]) == (ms, s)
    assert response.headers["x-tightrope-reason"] == "queue_full"


async def test_a_failed_run_is_still_named() -> None:
    response = await ends(FAILED, failure=FailureKind.REPLICA_LOST, message="replica big-3 is gone").post()
    assert response.headers["x-tightrope-run"] == "run_1"
    assert "node answer: replica big-3 is gone" in response.json()["error"]["message"]


async def test_errors_quote_no_contents() -> None:
    """What code raises and what models say may hold contents; the answer names the node only."""
    for failure in (FailureKind.CODE_ERROR, FailureKind.BAD_INPUT, FailureKind.BAD_OUTPUT):
        response = await ends(FAILED, failure=failure, message="canary-7f3").post()
        assert "canary-7f3" not in response.text


async def test_contents_and_keys_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    canary = chat(messages=[{"role": "user", "content": "canary-prompt"}])
    for world in (World(), raising(RuntimeError("x")), ends(FAILED, failure=FailureKind.CODE_ERROR)):
        await world.post(canary, {"x-other": "canary-header", "authorization": "Bearer tenant:shop"})
    assert "canary" not in caplog.text
    assert "tenant:shop" not in caplog.text
    assert "internal_error" in caplog.text


# --- hostile input ---------------------------------------------------------------------------------------


async def test_a_declared_size_beyond_the_limit_is_refused_unread() -> None:
    caller = Caller(World(settings=TINY).app, None, {"content-length": "101"})
    status, headers = await caller.head()
    assert (status, headers["connection"]) == (413, "close")
    await caller.end()


async def test_an_undeclared_body_is_refused_at_the_limit() -> None:
    caller = Caller(World(settings=TINY).app, None)
    for _ in range(3):
        caller.say(b" " * 50, more_body=True)
    assert (await caller.head())[0] == 413
    await caller.end()


async def test_a_body_that_stops_arriving_is_cut() -> None:
    caller = Caller(World(settings=Settings(body_silence_s=0.01)).app, None)
    caller.say(b'{"model":', more_body=True)
    status, headers = await caller.head()
    assert (status, headers["connection"]) == (400, "close")
    assert b"stopped arriving" in await caller.part()
    await caller.end()


async def test_a_client_that_leaves_while_sending_starts_nothing() -> None:
    world = World()
    caller = Caller(world.app, None)
    caller.say(b'{"model":', more_body=True)
    caller.leave()
    await caller.end()
    assert not world.runs.requests
    assert caller.sent.empty()


header_values = st.binary(max_size=20).map(lambda value: bytes(b for b in value if b not in b"\r\n\0"))
bodies = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
    st.builds(
        lambda at, junk: (text := json.dumps(chat(stream=True)).encode())[:at] + junk + text[at:],
        st.integers(0, 80),
        st.binary(min_size=1, max_size=4)
        | st.sampled_from([b"NaN", b"[" * 999, b"\\ud800", b'"a":1,"a":2,', b"1e999"]),
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=bodies,
    headers=st.dictionaries(
        st.sampled_from(
            ["x-tightrope-slo-ttft-ms", "x-stainless-read-timeout", "x-request-id", "content-type", "x-any"]
        ),
        header_values,
        max_size=2,
    ),
)
async def test_hostile_requests_are_answered_and_are_never_our_fault(
    body: bytes, headers: dict[str, Any]
) -> None:
    response = await World().post(body, headers)
    assert response.status_code in (200, 400, 404, 415)
    if response.status_code != 200:
        code(response)


async def test_a_prompt_of_a_megabyte_arrives_whole() -> None:
    world = World()
    await world.post(chat(messages=[{"role": "user", "content": "é" * 500_000}]))
    assert len(world.runs.requests[0].inputs.messages[0].content) == 500_000
