"""Prometheus metrics, read off the events and commands that pass the kernel.

Owns which message feeds which metric. Decides nothing and keeps no payloads: users, runs, requests, addresses
and prompts are never labels. How labels stay bounded is `bounded_metrics.py`.
"""

from __future__ import annotations

import math
import platform
from collections import Counter as Tally
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tightrope.adapters.attainment import Attainment
from tightrope.adapters.bounded_metrics import OTHER, SECONDS, Bounds
from tightrope.model.fleet import ReplicaSpec, ReplicaState
from tightrope.model.ids import (
    AcceleratorName,
    CallId,
    ModelName,
    ReplicaId,
    RunId,
    StepId,
    TenantId,
    WorkflowId,
)
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CancelCall,
    Command,
    Dispatch,
    Event,
    FinishRun,
    FirstToken,
    FleetPlanned,
    NoteScaling,
    Prepared,
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RunCode,
    RunSubmitted,
    SettleStep,
    StartReplica,
    StopReplica,
)
from tightrope.model.outcome import FailureKind, Outcome, Verdict

_SLACK = (-10.0, -5.0, -2.5, -1.0, -0.5, -0.25, -0.1, 0.0, *SECONDS[7:], 30.0, 60.0)
_ERRORS = (-0.9, -0.5, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_PAID = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)
"""A replica in these states sits on its cards."""


class Telemetry:
    """Told everything that passes the kernel, in order, by `observe`. Times are those of the kernel's clock."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._attainment = Attainment()
        self._registry.register(self._attainment)
        self._bounds = Bounds(self._registry)
        self._runs: dict[RunId, _Run] = {}
        self._calls: dict[CallId, _Call] = {}
        self._replicas: dict[ReplicaId, _Replica] = {}
        self._waiting: Tally[TenantId] = Tally()
        self._usd_per_h: dict[AcceleratorName, float] = {}
        self._cards: dict[tuple[ModelName, AcceleratorName], int] = {}
        self._define()

    def observe(self, message: Event | Command, now_s: float) -> None:
        """Take one event or command into account. Never raises for one that does not fit what came before."""
        self._attainment.now_s = now_s
        match message:
            case RunSubmitted():
                self._runs[message.run] = _Run(message.tenant, _name(message.workflow), message.slo.attain)
            case Prepared():
                self._prepared(message)
            case Dispatch():
                self._dispatched(message, now_s)
            case RunCode():
                self._code_began(message, now_s)
            case FirstToken():
                self._first_token(message.call, now_s)
            case CallDone():
                self._call_ended(message.call, "succeeded", now_s)
            case CallFailed():
                self._call_failed(message, now_s)
            case CancelCall():
                self._call_ended(message.call, "cancelled", now_s)
            case SettleStep():
                self._no_longer_waits(message.run, message.step)
            case FinishRun():
                self._finished(message, now_s)
            case (
                FleetPlanned()
                | StartReplica()
                | StopReplica()
                | ReplicaReady()
                | ReplicaLost()
                | ReplicaStopped()
            ):
                self._replica_moved(message, now_s)
            case AcceleratorRegistered(card):
                self._usd_per_h[card.name] = card.usd_per_h
            case ProvisioningSet(provisioning):
                self._cards = {(one.model, one.accelerator): one.cards for one in provisioning.bounds}
            case NoteScaling():
                action = f"advised-{message.action}" if message.is_advice else message.action
                self._actions.labels(message.model, message.accelerator, action, message.reason).inc()
            case _:
                pass

    def observe_gateway_overhead(self, seconds: float) -> None:
        """Time from the head of a request to the runtime having it."""
        self._gateway_overhead.labels().observe(seconds)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that an Accept header asks for, and its media type."""
        encode, media = choose_encoder(accept)
        return encode(self._registry), media

    # --- runs ----------------------------------------------------------------------------------------

    def _prepared(self, message: Prepared) -> None:
        run = self._runs.get(message.run)
        if run is None:
            return
        for item in range(len(message.items)):
            self._waits(run, (message.step, item))

    def _finished(self, message: FinishRun, now_s: float) -> None:
        run = self._runs.pop(message.run, None)
        tenant, workflow = message.tenant, _name(message.workflow)
        if run is not None:
            for _ in run.waiting:
                self._wait_ended(run)
        self._runs_total.labels(tenant, workflow, message.outcome, message.verdict).inc()
        self._run_duration.labels(tenant, workflow).observe(message.duration_s)
        if message.ttft_s is not None:
            self._run_ttft.labels(tenant, workflow).observe(message.ttft_s)
        if message.outcome is Outcome.REJECTED:
            self._rejections.labels(tenant, message.refusal or OTHER).inc()
        if message.verdict is not Verdict.NONE:
            key = (self._bounds.value("tenant", tenant), self._bounds.value("workflow", workflow))
            self._attainment.add(key, run.attain if run else 0.95, message.verdict is Verdict.MET, now_s)

    # --- calls ---------------------------------------------------------------------------------------

    def _dispatched(self, message: Dispatch, now_s: float) -> None:
        run = self._runs.get(message.run)
        if run is None:
            return
        key = (message.step, message.item)
        self._no_longer_waits_item(run, key)
        failure = run.failure_by_item.pop(key, None)
        if failure is FailureKind.REPLICA_LOST:
            self._failovers.labels(failure).inc()
        elif failure is not None:
            self._retries.labels(failure).inc()
        chosen = next((offer for offer in message.routed.offers if offer.replica == message.replica), None)
        accelerator = chosen.accelerator if chosen else self._accelerator(message.replica)
        self._calls[message.call] = _Call(
            run, message.step, message.item, now_s, message.model, accelerator,
            predicted_ttft_s=chosen.estimate.ttft / 1000 if chosen else None,
        )  # fmt: skip
        self._decisions.labels(message.routed.policy, message.routed.reason, accelerator).inc()
        self._queue_wait.labels(run.tenant).observe(message.waited_s)
        self._phase(run, message.step, "queue", message.waited_s)
        if math.isfinite(message.slack.slack_s):
            self._node_slack.labels(run.workflow, self._node(run, message.step)).observe(
                message.slack.slack_s
            )

    def _code_began(self, message: RunCode, now_s: float) -> None:
        run = self._runs.get(message.run)
        if run is not None:
            self._no_longer_waits_item(run, (message.step, message.item))
            self._calls[message.call] = _Call(run, message.step, message.item, now_s)

    def _first_token(self, call_id: CallId, now_s: float) -> None:
        call = self._calls.get(call_id)
        if call is None or call.first_s is not None:
            return
        call.first_s = now_s
        took_s = now_s - call.began_s
        self._phase(call.run, call.step, "prefill", took_s)
        if call.predicted_ttft_s:
            error = took_s / call.predicted_ttft_s - 1
            self._prediction_error.labels("total", call.accelerator).observe(error)

    def _call_failed(self, message: CallFailed, now_s: float) -> None:
        call = self._calls.get(message.call)
        if call is not None:
            key = (call.step, call.item)
            call.run.failure_by_item[key] = message.failure
        self._call_ended(message.call, "failed", now_s)

    def _call_ended(self, call_id: CallId, outcome: str, now_s: float) -> None:
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        if call.model is None:
            self._phase(call.run, call.step, "code", now_s - call.began_s)
            return
        if call.first_s is not None:
            self._phase(call.run, call.step, "decode", now_s - call.first_s)
        self._calls_total.labels(call.model, call.accelerator, outcome).inc()

    def _phase(self, run: _Run, step: StepId, phase: str, seconds: float) -> None:
        self._node_duration.labels(run.workflow, self._node(run, step), phase).observe(seconds)

    def _node(self, run: _Run, step: StepId) -> str:
        return self._bounds.node(run.workflow, step)

    # --- waiting lines -------------------------------------------------------------------------------

    def _waits(self, run: _Run, key: _Item) -> None:
        if key not in run.waiting:
            run.waiting.add(key)
            self._waiting[run.tenant] += 1
            self._show_depth(run)

    def _no_longer_waits(self, run_id: RunId, step: StepId) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            for key in [key for key in run.waiting if key[0] == step]:
                self._no_longer_waits_item(run, key)

    def _no_longer_waits_item(self, run: _Run, key: _Item) -> None:
        if key in run.waiting:
            run.waiting.discard(key)
            self._wait_ended(run)

    def _wait_ended(self, run: _Run) -> None:
        self._waiting[run.tenant] -= 1
        self._show_depth(run)

    def _show_depth(self, run: _Run) -> None:
        self._queue_depth.labels(run.tenant).set(self._waiting[run.tenant])

    # --- replicas ------------------------------------------------------------------------------------

    def _replica_moved(
        self,
        message: FleetPlanned | StartReplica | StopReplica | ReplicaReady | ReplicaLost | ReplicaStopped,
        now_s: float,
    ) -> None:
        match message:
            case FleetPlanned(plan):
                for spec in plan.replicas:
                    self._replicas.setdefault(spec.id, _Replica(spec))
            case StartReplica(spec):
                replica = self._replicas.setdefault(spec.id, _Replica(spec))
                replica.ordered_s = now_s
                self._show_state(replica, ReplicaState.STARTING)
            case ReplicaStopped(replica_id):
                stopped = self._replicas.get(replica_id)
                # One that is starting has not begun yet: that was the one before it by the same name.
                if stopped is not None and stopped.state is not ReplicaState.STARTING:
                    del self._replicas[replica_id]
                    self._show_state(stopped, None)
            case ReplicaReady(replica_id) | ReplicaLost(replica_id) | StopReplica(replica_id):
                if (known := self._replicas.get(replica_id)) is not None:
                    self._replica_told(known, message, now_s)

    def _replica_told(
        self, replica: _Replica, message: ReplicaReady | ReplicaLost | StopReplica, now_s: float
    ) -> None:
        match message:
            case ReplicaReady():
                if replica.ordered_s is not None:
                    labels = (replica.spec.model, replica.spec.accelerator)
                    self._start_seconds.labels(*labels).observe(now_s - replica.ordered_s)
                    replica.ordered_s = None
                self._show_state(replica, ReplicaState.READY)
            case ReplicaLost():
                self._show_state(replica, ReplicaState.LOST)
            case StopReplica():
                self._show_state(replica, ReplicaState.DRAINING)

    def _show_state(self, replica: _Replica, state: ReplicaState | None) -> None:
        spec = replica.spec
        if replica.state is not None:
            self._replica_state.labels(spec.model, spec.accelerator, replica.state).dec()
        if state is not None:
            self._replica_state.labels(spec.model, spec.accelerator, state).inc()
        cards = self._cards.get((spec.model, spec.accelerator), 1)
        usd_per_h = cards * self._usd_per_h.get(spec.accelerator, 0.0) if state in _PAID else 0.0
        self._cost.labels(spec.model, spec.accelerator).inc(usd_per_h - replica.usd_per_h)
        replica.state, replica.usd_per_h = state, usd_per_h

    def _accelerator(self, replica: ReplicaId) -> str:
        known = self._replicas.get(replica)
        return known.spec.accelerator if known is not None else OTHER

    # --- names ---------------------------------------------------------------------------------------

    def _define(self) -> None:
        bounds = self._bounds
        self._runs_total = bounds.counter(
            "workflow_runs_total", "Runs that ended.", "tenant", "workflow", "outcome", "slo"
        )
        self._run_ttft = bounds.histogram(
            "workflow_ttft_seconds", "From arrival to the first content.", "tenant", "workflow"
        )
        self._run_duration = bounds.histogram(
            "workflow_duration_seconds", "From arrival to the end.", "tenant", "workflow"
        )
        self._node_duration = bounds.histogram(
            "node_duration_seconds", "Where the time of a node went.", "workflow", "node", "phase"
        )
        self._node_slack = bounds.histogram(
            "node_slack_seconds", "Slack left when a call was placed.", "workflow", "node", buckets=_SLACK
        )
        self._calls_total = bounds.counter(
            "calls_total", "Attempts of model calls.", "model", "accelerator", "outcome"
        )
        self._decisions = bounds.counter(
            "router_decisions_total", "Calls placed.", "mode", "reason", "accelerator"
        )
        self._prediction_error = bounds.histogram(
            "router_prediction_error_ratio", "Measured against predicted time to the first token, minus one.",
            "component", "accelerator", buckets=_ERRORS,
        )  # fmt: skip
        self._queue_depth = bounds.gauge("queue_depth", "Calls that wait to be placed.", "tenant")
        self._queue_wait = bounds.histogram("queue_wait_seconds", "Wait before a call was placed.", "tenant")
        self._rejections = bounds.counter("rejections_total", "Runs refused at entry.", "tenant", "reason")
        self._retries = bounds.counter("retries_total", "Attempts that repeat a failed one.", "reason")
        self._failovers = bounds.counter("failovers_total", "Attempts after a replica was lost.", "reason")
        self._replica_state = bounds.gauge(
            "replica_state", "Replicas in each state.", "model", "accelerator", "state"
        )
        self._start_seconds = bounds.histogram(
            "replica_start_seconds", "From order to ready.", "model", "accelerator",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
        )  # fmt: skip
        self._cost = bounds.gauge(
            "fleet_cost_usd_per_hour", "Price of the cards that replicas are on now.", "model", "accelerator"
        )
        self._actions = bounds.counter(
            "provisioner_actions_total", "Changes of the fleet, and those that something stood in the way of.",
            "model", "accelerator", "action", "reason",
        )  # fmt: skip
        self._gateway_overhead = bounds.histogram(
            "gateway_overhead_seconds", "From the head of a request to the runtime having it."
        )
        build = bounds.gauge("build_info", "What runs.", "version", "python")
        build.labels(_version(), platform.python_version()).set(1)


_Item = tuple[StepId, int]


@dataclass(slots=True)
class _Run:
    tenant: TenantId
    workflow: str
    attain: float
    waiting: set[_Item] = field(default_factory=set)
    failure_by_item: dict[_Item, FailureKind] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    """A call under way; `model` is None for code."""

    run: _Run
    step: StepId
    item: int
    began_s: float
    model: str | None = None
    accelerator: str = ""
    predicted_ttft_s: float | None = None
    first_s: float | None = None


@dataclass(slots=True)
class _Replica:
    spec: ReplicaSpec
    state: ReplicaState | None = None
    ordered_s: float | None = None
    usd_per_h: float = 0.0


def _name(workflow: WorkflowId) -> str:
    return workflow.rpartition("@")[0] or workflow


def _version() -> str:
    try:
        return version("tightrope")
    except PackageNotFoundError:
        return "source"
