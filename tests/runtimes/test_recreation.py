"""The steps of a recreation, in a model that is searched whole: a crash and a change of mind at every step."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from agent.runtimes.containers import CONFIG_LABEL, POLICY_LABEL, REPLACES_LABEL, Container
from agent.runtimes.recreation import Do, Found, Step, left_over, next_step, undo

ALWAYS = "always"
MOST_STEPS = 16
TARGETS = (None, "t1", "t2")


@dataclass(frozen=True)
class Body:
    """A container, as far as the steps depend on it."""

    id: str
    sha256: str | None
    policy: str
    replaces: str | None = None
    replaced_policy: str | None = None
    up: bool = False

    def read(self) -> Container:
        labels = {CONFIG_LABEL: self.sha256, REPLACES_LABEL: self.replaces}
        if self.replaced_policy is not None:
            labels[POLICY_LABEL] = json.dumps({"Name": self.replaced_policy})
        data: dict[str, Any] = {
            "Id": self.id,
            "Config": {"Labels": {key: value for key, value in labels.items() if value is not None}},
            "HostConfig": {"RestartPolicy": {"Name": self.policy}},
            "State": {"Running": self.up},
        }
        return Container(data)


@dataclass(frozen=True)
class Node:
    """Who has which of the three names."""

    named: Body | None
    new: Body | None = None
    kept: Body | None = None
    made: int = 0

    def found(self) -> Found:
        return Found(*(body.read() if body else None for body in (self.named, self.new, self.kept)))

    def bodies(self) -> list[Body]:
        return [body for body in (self.named, self.new, self.kept) if body]

    def replaced(self, body_id: str, body: Body | None) -> "Node":
        def now(old: Body | None) -> Body | None:
            return body if old is not None and old.id == body_id else old

        return Node(now(self.named), now(self.new), now(self.kept), self.made)

    def renamed(self, body_id: str, name: str) -> "Node":
        body = next(body for body in self.bodies() if body.id == body_id)
        rest = self.replaced(body_id, None)
        assert getattr(rest, name) is None, f"{name} is taken"
        wanted: dict[str, Any] = {name: body}
        return replace(rest, **wanted)


def done(node: Node, step: Step, target: str | None) -> Node:  # noqa: PLR0911 - one for each step
    """Do a step as the Engine does."""
    body = next(body for body in node.bodies() if body.id == step.container.id)
    match step.do:
        case Do.MAKE:
            assert node.new is None
            assert step.policy is not None
            policy = str(step.policy["Name"])
            new = Body(f"made-{node.made}", target, policy, step.replaces, policy)
            return replace(node, new=new, made=node.made + 1)
        case Do.UNBIND | Do.REBIND:
            assert step.policy is not None
            return node.replaced(body.id, replace(body, policy=str(step.policy["Name"])))
        case Do.STOP:
            return node.replaced(body.id, replace(body, up=False))
        case Do.KEEP:
            assert not body.up
            return node.renamed(body.id, "kept")
        case Do.PUT_ASIDE:
            assert not body.up
            return node.renamed(body.id, "new")
        case Do.NAME:
            return node.renamed(body.id, "named")
        case Do.DROP:
            assert not body.up
            return node.replaced(body.id, None)


def converged(node: Node, target: str | None) -> Node:
    """Go on to the end, and check that there is one."""
    for _ in range(MOST_STEPS):
        step = next_step(node.found(), target)
        if step is None:
            assert node.named is not None
            assert node.named.sha256 == target
            return node
        node = done(node, step, target)
    msg = f"no end from {node} to {target}"
    raise AssertionError(msg)


def tidied(node: Node, committed: str | None, wanted: str | None = "whatever") -> Node:
    for _ in range(MOST_STEPS):
        step = left_over(node.found(), committed=committed, wanted=wanted)
        if step is None:
            return node
        node = done(node, step, None)
    msg = f"no end to tidying {node}"
    raise AssertionError(msg)


def reachable(start: Node) -> Iterator[Node]:
    """Every state that a crash can leave, whichever configs are wanted one after the other."""
    seen, todo = {start}, [start]
    while todo:
        node = todo.pop()
        yield node
        for target in TARGETS:
            step = next_step(node.found(), target)
            following = [done(node, step, target)] if step else []
            if node.named is not None and not node.named.up and step is None:
                following.append(node.replaced(node.named.id, replace(node.named, up=True)))
            for state in following:
                if state not in seen and state.made < 4:
                    seen.add(state)
                    todo.append(state)


ORIGINAL = Body("original", None, ALWAYS, up=True)


def test_every_state_that_a_crash_leaves_leads_to_what_is_wanted() -> None:
    states = list(reachable(Node(ORIGINAL)))
    assert len(states) > 100
    for node in states:
        for target in TARGETS:
            converged(node, target)


def test_the_original_is_never_lost_and_gets_its_policy_back() -> None:
    for node in reachable(Node(ORIGINAL)):
        assert "original" in {body.id for body in node.bodies()}, node
        back = tidied(converged(node, None), None)
        assert back.bodies() == [replace(ORIGINAL, up=back.named.up if back.named else False)], node


def test_no_two_containers_that_the_engine_would_both_start() -> None:
    for node in reachable(Node(ORIGINAL)):
        would_start = [body for body in node.bodies() if body.policy == ALWAYS and (body.up or body is node.named)]
        assert len(would_start) <= 1, node
        if node.named is not None and node.kept is not None:
            assert node.kept.policy == "no", node


def test_what_was_committed_stays_alone_with_its_policy() -> None:
    for node in reachable(Node(ORIGINAL)):
        end = tidied(converged(node, "t1"), "t1")
        assert len(end.bodies()) == 1, node
        assert end.named is not None
        assert (end.named.sha256, end.named.policy) == ("t1", ALWAYS)


def test_tidying_what_is_not_committed_never_touches_what_is_in_use_or_kept() -> None:
    for node in reachable(Node(ORIGINAL)):
        end = tidied(node, "another")
        if node.named is not None and end.named is not None:
            assert end.named.id == node.named.id
            assert end.named.up == node.named.up
        assert end.kept == node.kept


def test_tidying_puts_the_committed_one_back_while_nothing_runs() -> None:
    for node in reachable(Node(ORIGINAL)):
        end = tidied(node, None, wanted=None)
        assert end.named is not None
        if node.named is not None and node.named.up:
            assert end.named.id == node.named.id
            assert end.named.up
        elif node.kept is not None:
            assert end.bodies() == [replace(ORIGINAL, up=False)]


def test_a_container_that_somebody_else_made_takes_the_place_of_the_kept_one() -> None:
    theirs = Body("theirs", None, "no")
    node = Node(theirs, kept=Body("ours", None, "no"))
    end = converged(node, "t1")
    assert end.kept is not None
    assert end.kept.id == "theirs"


def test_what_is_left_under_the_other_names_is_put_back() -> None:
    assert converged(Node(None, kept=Body("original", None, "no")), None).named == Body("original", None, "no")
    only_new = Node(None, new=Body("made", "t1", ALWAYS, "original", ALWAYS))
    assert converged(only_new, "t1").named == only_new.new
    assert next_step(Found(None), "t1") is None
    assert undo(Found(None)) is None
