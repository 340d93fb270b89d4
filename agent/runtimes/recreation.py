"""Making a container anew, so that a crash after any step leaves a state from which it goes on, or goes back.

A container's environment cannot be changed. So another one is made beside it, and takes its name; the first is kept
until the new one was seen ready. Which step comes next is read off three names and the labels, never remembered:

    NAME                    the container in use
    NAME.iggy-agent-new     one that is to take its place, or one that had to leave it
    NAME.iggy-agent-kept    the one before, to go back to

    forward      make new · take NAME's restart policy away · (stop) · NAME becomes kept · new becomes NAME
    back         take NAME's restart policy away · (stop) · NAME becomes new · kept becomes NAME · its policy · drop new

While two containers exist, one of them has no restart policy: else the Engine might run both, on one volume.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog

from agent.runtimes.containers import NO_POLICY, Container
from agent.runtimes.engine import Engine, RefusedError
from agent.runtimes.recipe import Target, make_recipe

log = structlog.get_logger(__name__)

NEW, KEPT = ".iggy-agent-new", ".iggy-agent-kept"
POLICY_TRIES, POLICY_PAUSE = 20, 0.1
"""How often a restart policy is set before it is given up, and the seconds in between."""
_UNFINISHED = ".iggy-agent-unfinished"
"""What a new one is called until it is connected to all its networks, so that one that is called new is whole."""


@dataclass(frozen=True, slots=True)
class Found:
    """The containers under the three names, of those that are there."""

    named: Container | None
    new: Container | None = None
    kept: Container | None = None

    @property
    def in_use(self) -> Container | None:
        """The container that an observation is about: also between two renames there is one."""
        return self.named or self.kept or self.new

    @property
    def under_way(self) -> bool:
        """Whether a recreation was cut off between two renames."""
        return self.named is None and self.in_use is not None


class Do(StrEnum):
    """A step, named by what it does."""

    MAKE = "make"
    """Make a new one, like the one in use."""
    UNBIND = "unbind"
    """Take the restart policy away."""
    STOP = "stop"
    """It has to be down before this goes on; the driver does that."""
    KEEP = "keep"
    """Rename it to the kept one."""
    PUT_ASIDE = "put_aside"
    """Rename it to the new one, out of the way of the kept one."""
    NAME = "name"
    """Give it the name in use."""
    REBIND = "rebind"
    """Give it its restart policy back."""
    DROP = "drop"
    """Remove it; never its volumes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a recreation.

    Args:
        do: What.
        container: With which.
        policy: The restart policy that it gets, or that the new one gets.
        replaces: Id of the container that a new one is to replace.
    """

    do: Do
    container: Container
    policy: Mapping[str, Any] | None = None
    replaces: str | None = None


def next_step(found: Found, sha256: str | None) -> Step | None:
    """Read off the next step towards a container with the variables of a release; None when there is none left.

    Args:
        found: What is there now.
        sha256: Checksum of the release.
    """
    if found.named is None:
        return _name_one(found, sha256)
    if found.named.config_sha256 == sha256:
        return undo(found)
    stale = found.kept is not None and found.named.replaces != found.kept.id
    if stale and found.kept is not None:  # what is in use was made by somebody else since; nothing leads back to it
        return Step(Do.DROP, found.kept)
    if found.kept is not None and found.kept.config_sha256 == sha256:
        return _go_back(found.named, found.new)
    return _go_forward(found.named, found.new, found.kept, sha256)


def undo(found: Found) -> Step | None:
    """Read off the next step to leave the container in use as it is, with nothing begun beside it."""
    named = found.named
    if named is None:
        return None
    going_back = found.kept is not None and named.replaces == found.kept.id
    if going_back and _has_no_policy(named) and not _is_no(named.replaced_policy):
        return Step(Do.REBIND, named, named.replaced_policy)  # going back was begun, and is not wanted any more
    return _undo(named, found.new) if found.new is not None else None


def left_over(found: Found, *, committed: str | None, wanted: str | None) -> Step | None:
    """Read off the next step to tidy up, once the verdict of an action is durable; nothing that runs is touched.

    Args:
        found: What is there now.
        committed: Checksum of the committed release.
        wanted: Checksum of the current release.
    """
    in_use, kept = found.in_use, found.kept
    if found.named is not None and found.named.config_sha256 == committed:
        return undo(found) or (_drop(kept) if kept is not None else None)
    back = kept is not None and kept.config_sha256 == committed == wanted
    if back and in_use is not None and not in_use.is_up:
        return next_step(found, committed)
    return undo(found)


def _undo(named: Container, new: Container) -> Step:
    if new.replaces == named.id and _has_no_policy(named) and not _is_no(new.replaced_policy):
        return Step(Do.REBIND, named, new.replaced_policy)
    return _drop(new)


def _name_one(found: Found, sha256: str | None) -> Step | None:
    new, kept = found.new, found.kept
    if new is not None and (kept is None or (new.config_sha256 == sha256 and kept.config_sha256 != sha256)):
        return Step(Do.NAME, new)
    return Step(Do.NAME, kept) if kept is not None else None


def _go_back(named: Container, new: Container | None) -> Step:
    if new is not None:
        return _drop(new)
    return _release(named) or Step(Do.PUT_ASIDE, named)


def _go_forward(named: Container, new: Container | None, kept: Container | None, sha256: str | None) -> Step:
    replaces = (kept or named).id
    if new is not None and (new.config_sha256 != sha256 or new.replaces != replaces):
        return _undo(named, new)
    if new is None:
        lost = kept is not None and _has_no_policy(named)
        return Step(Do.MAKE, named, named.replaced_policy if lost else named.policy, replaces)
    return _release(named) or (Step(Do.KEEP, named) if kept is None else Step(Do.DROP, named))


def _release(named: Container) -> Step | None:
    """Take the restart policy away, and have it stopped, before another one takes its place."""
    if not _has_no_policy(named):
        return Step(Do.UNBIND, named, NO_POLICY)
    return Step(Do.STOP, named) if named.is_up else None


def _drop(container: Container) -> Step:
    return Step(Do.STOP, container) if container.is_up else Step(Do.DROP, container)


def _has_no_policy(container: Container) -> bool:
    return _is_no(container.policy)


def _is_no(policy: Mapping[str, Any]) -> bool:
    return policy.get("Name") in {None, "", "no"}


class Recreation:
    """Carries the steps out.

    Args:
        engine: Where.
        name: Of the container.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self.names = (name, name + NEW, name + KEPT)

    async def find_named(self) -> Container | None:
        """Read the container in use, by its name and not by an id that begins so."""
        return await self._find(self._name)

    async def find(self) -> Found:
        """Read all three."""
        named, new, kept = [await self._find(name) for name in self.names]
        return Found(named, new, kept)

    async def _find(self, name: str) -> Container | None:
        data = await self._engine.inspect(name)
        container = Container(data) if data is not None else None
        return container if container is not None and container.name == name else None

    async def carry_out(self, step: Step, target: Target) -> None:
        """Carry out a step, other than a stop; one that was done meanwhile is no error.

        Raises:
            ImageGoneError: A new container cannot be made.
            EngineError: It was refused, or the Engine is away.
        """
        container = step.container
        log.info("docker.recreation", container=self._name, step=str(step.do), id=container.short_id)
        match step.do:
            case Do.MAKE:
                await self._make(step, target)
            case Do.UNBIND | Do.REBIND:
                await self._set_policy(container, step.policy or NO_POLICY)
            case Do.KEEP:
                await self._engine.rename(container.id, self._name + KEPT)
            case Do.PUT_ASIDE:
                await self._engine.rename(container.id, self._name + NEW)
            case Do.NAME:
                await self._engine.rename(container.id, self._name)
            case Do.DROP:
                await self._engine.remove(container.id)
            case Do.STOP:
                msg = "a stop is the driver's own"
                raise AssertionError(msg)

    async def _set_policy(self, container: Container, policy: Mapping[str, Any]) -> None:
        """Set a restart policy; the Engine refuses that in the moment in which a container ends, as in a crash loop."""
        for _ in range(POLICY_TRIES - 1):
            try:
                await self._engine.set_restart_policy(container.id, policy)
            except RefusedError as error:
                if error.status < 500:
                    raise
                await asyncio.sleep(POLICY_PAUSE)
            else:
                return
        await self._engine.set_restart_policy(container.id, policy)

    async def _make(self, step: Step, target: Target) -> None:
        source = step.container
        recipe = make_recipe(
            source,
            target,
            image=await self._image(source),
            replaces=step.replaces or source.id,
            policy=step.policy or NO_POLICY,
        )
        if not recipe.networks:
            await self._engine.create(self._name + NEW, recipe.body)
            return
        await self.drop_unfinished()
        made = await self._engine.create(self._name + _UNFINISHED, recipe.body)
        for network, endpoint in recipe.networks.items():
            await self._engine.connect(network, made, endpoint)
        await self._engine.rename(made, self._name + NEW)

    async def drop_unfinished(self) -> None:
        """Remove what was never finished making."""
        if left := await self._find(self._name + _UNFINISHED):
            await self._engine.remove(left.id)

    async def _image(self, source: Container) -> str:
        """Name its image: by the old name if that still means the same one, else by id."""
        image_id = str(source.data.get("Image"))
        name = str((source.data.get("Config") or {}).get("Image") or image_id)
        if await self._engine.image_id(name) == image_id:
            return name
        if await self._engine.image_id(image_id) is None:
            raise ImageGoneError(name)
        return image_id


class ImageGoneError(RefusedError):
    """The image that a container was made from is not there any more.

    Args:
        name: Of the image.
    """

    def __init__(self, name: str) -> None:
        super().__init__(404, f"its image {name} is gone")
