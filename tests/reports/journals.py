"""Journals built by hand: a shop workflow with known times, in milliseconds since its arrival."""

from __future__ import annotations

from tightrope.kernel.journal import Entry
from tightrope.model.fleet import Estimate, Offer, Routed
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
    CallDone,
    CaseTaken,
    Command,
    Dispatch,
    Event,
    FinishRun,
    FirstToken,
    Item,
    Prepare,
    Prepared,
    RunCode,
    RunSubmitted,
    Slack,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind, Outcome, Refusal, Usage, Verdict
from tightrope.model.slo import Slo
from tightrope.model.workflow import (
    Binding,
    Case,
    CaseRef,
    CodeCall,
    ModelCall,
    Node,
    Prompt,
    Ref,
    Switch,
    Workflow,
)

ORIGIN_S = 1000.0
"""The kernel's clock at the arrival of the run."""
WALL_S = 1_700_000_000.0
RUN = RunId("run_1")


def shop_workflow() -> Workflow:
    """intent, then a switch; `search` (code) in one of its cases; `answer` reads both."""
    intent = Node(StepId("intent"), _model("tiny"), inputs=(("q", _reads("input", "q")),))
    search = Node(StepId("search"), CodeCall("shop:search"), case=CaseRef(StepId("route"), "browse"))
    notes = Binding((Ref("search"),), optional=True)
    answer = Node(StepId("answer"), _model("big"), inputs=(("intent", _reads("intent")), ("notes", notes)))
    cases = (Case("browse", "true", 0.5), Case("chat", None, 0.5))
    route = Switch(StepId("route"), cases, reads=(StepId("intent"),))
    return Workflow("shop", (intent, search, answer), StepId("answer"), Slo(ttft="900ms"), switches=(route,))


def _model(name: str) -> ModelCall:
    return ModelCall(ModelName(name), Prompt(text="{{ q }}"), max_tokens=64, stream=True)


def _reads(source: str, *path: str) -> Binding:
    return Binding((Ref(source, path),))


class Journal:
    """Entries of one run, written in the order they are asked for."""

    def __init__(
        self, workflow: Workflow | None = None, run: RunId = RUN, origin_s: float = ORIGIN_S
    ) -> None:
        self.workflow = workflow or shop_workflow()
        self.run = run
        self.origin_s = origin_s
        self.entries: list[Entry] = []
        self._at_ms = 0.0

    def at(self, at_ms: float) -> Journal:
        """From now on things happen at this moment."""
        self._at_ms = at_ms
        return self

    def event(self, *events: Event) -> Journal:
        """Facts."""
        return self._add(events, False)

    def command(self, *commands: Command) -> Journal:
        """Wishes."""
        return self._add(commands, True)

    def _add(self, messages: tuple[Event | Command, ...], is_command: bool) -> Journal:
        at_s = self.origin_s + self._at_ms / 1000
        wall_s = WALL_S + self._at_ms / 1000
        self.entries += [Entry(at_s, message, is_command, wall_s) for message in messages]
        return self

    def submitted(self, slo: Slo | None = None, request: str = "req-1", tenant: str = "shop") -> Journal:
        """The workflow, and a run of it."""
        promise = self.workflow.slo if slo is None else slo
        arrived = RunSubmitted(
            self.run, TenantId(tenant), WorkflowId(self.workflow.id), promise, 60.0, True, request_id=request
        )
        return self.event(WorkflowDeployed(self.workflow), arrived)

    def ready(self, step: str) -> Journal:
        """All that the step waits for is there."""
        return self.command(Prepare(self.run, StepId(step)))

    def prepared(self, step: str, items: int = 1) -> Journal:
        """Its inputs are built."""
        return self.event(Prepared(self.run, StepId(step), (Item(),) * items))

    def case(self, step: str, case: str) -> Journal:
        """A switch is decided."""
        return self.event(CaseTaken(self.run, StepId(step), case))

    def code(self, step: str, item: int = 0, attempt: int = 0) -> Journal:
        """A function begins."""
        slack = Slack(0.0, 0.4, 0.1, 0.2)
        call = self.call(step, item, attempt)
        return self.command(RunCode(call, self.run, StepId(step), item, attempt, slack))

    def dispatch(
        self,
        step: str,
        replica: str,
        *,
        waited_ms: float = 0.0,
        slack_ms: float = 300.0,
        budget_ms: float = 200.0,
        estimate: Estimate | None = None,
        others: tuple[Offer, ...] = (),
        item: int = 0,
        attempt: int = 0,
        model: str = "big",
        prompt_tokens: int = 100,
        output_tokens: float = 20.0,
    ) -> Journal:
        """A model call goes to a replica."""
        chosen = offer(
            replica, "slow", estimate or Estimate(80.0, 15.0, 5.0, 100.0, 400.0), "chosen, 200 ms inside"
        )
        return self.command(
            Dispatch(
                call=self.call(step, item, attempt),
                run=self.run,
                step=StepId(step),
                item=item,
                attempt=attempt,
                replica=ReplicaId(replica),
                model=model,
                max_tokens=64,
                is_reask=False,
                idle_s=10.0,
                waited_s=waited_ms / 1000,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                slack=Slack(0.0, slack_ms / 1000, budget_ms / 1000, 0.1),
                routed=Routed(ReplicaId(replica), "smallest-estimate", (chosen, *others), "foresight"),
            )
        )

    def first_token(self, step: str, item: int = 0, attempt: int = 0) -> Journal:
        """The call decodes."""
        return self.event(FirstToken(self.call(step, item, attempt)))

    def done(self, step: str, item: int = 0, attempt: int = 0, usage: Usage | None = None) -> Journal:
        """The call ended well."""
        return self.event(CallDone(self.call(step, item, attempt), usage or Usage(110, 20)))

    def finish(
        self,
        verdict: Verdict = Verdict.MET,
        outcome: Outcome = Outcome.SUCCEEDED,
        *,
        ttft_ms: float | None = None,
        tpot_ms: float | None = None,
        failure: FailureKind | None = None,
        refusal: Refusal | None = None,
        step: str | None = None,
        message: str = "",
        retry_after_s: float | None = None,
        tenant: str = "shop",
    ) -> Journal:
        """The run is over."""
        return self.command(
            FinishRun(
                run=self.run,
                tenant=TenantId(tenant),
                workflow=WorkflowId(self.workflow.id),
                outcome=outcome,
                verdict=verdict,
                duration_s=self._at_ms / 1000,
                ttft_s=None if ttft_ms is None else ttft_ms / 1000,
                tpot_s=None if tpot_ms is None else tpot_ms / 1000,
                usage=Usage(220, 40),
                failure=failure,
                refusal=refusal,
                step=None if step is None else StepId(step),
                message=message,
                retry_after_s=retry_after_s,
            )
        )

    def call(self, step: str, item: int = 0, attempt: int = 0) -> CallId:
        """The name of a try."""
        return CallId(f"{self.run}/{step}/{item}.{attempt}")


def offer(replica: str, accelerator: str, estimate: Estimate, verdict: str) -> Offer:
    """A candidate."""
    return Offer(ReplicaId(replica), AcceleratorName(accelerator), estimate, estimate.crit, verdict)


def late_run() -> Journal:
    """A run whose answer was predicted after 100 ms and came after 800 ms: 400 ms late."""
    fast = offer("big-fast", "fast", Estimate(90.0, 20.0, 30.0, 140.0, 100.0), "slower by 40 ms")
    journal = Journal().at(0).submitted().ready("intent").at(2).prepared("intent")
    journal.at(12).dispatch("intent", "tiny-1", waited_ms=10, budget_ms=150, model="tiny",
                            estimate=Estimate(70.0, 0.0, 0.0, 40.0, 30.0))  # fmt: skip
    journal.at(62).first_token("intent").at(100).done("intent").ready("route")
    journal.at(101).case("route", "browse").ready("search").at(102).prepared("search").code("search")
    journal.at(300).done("search", usage=Usage()).ready("answer").at(301).prepared("answer")
    journal.at(500).dispatch("answer", "big-slow", waited_ms=199, slack_ms=400, budget_ms=600, others=(fast,))
    journal.at(1300).first_token("answer").at(2000).done("answer", usage=Usage(150, 21))
    return journal.finish(Verdict.MISSED, ttft_ms=1300.0)
