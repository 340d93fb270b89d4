"""What is taken over of a container's own account, where Engines tell it in other words than they take it."""

import pytest

from agent.runtimes.containers import NO_POLICY, Container
from agent.runtimes.recipe import Recipe, Target, make_recipe


def recipe_of(**host: object) -> Recipe:
    found = {"Id": "c0ffee" * 10, "Name": "/iggy", "State": {}, "Config": {"Image": "i"}, "HostConfig": host}
    return make_recipe(Container(found), Target(None, {}), image="i", replaces="x", policy=NO_POLICY)


@pytest.mark.parametrize("told", ["nofile", "RLIMIT_NOFILE"])
def test_a_limit_is_asked_for_by_dockers_name_for_it_also_where_podman_tells_it_by_the_kernels(told: str) -> None:
    recipe = recipe_of(Ulimits=[{"Name": told, "Soft": 10, "Hard": 20}])
    assert recipe.body["HostConfig"]["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]


@pytest.mark.parametrize("told", [None, []])
def test_no_limits_stay_no_limits(told: list[object] | None) -> None:
    assert recipe_of(Ulimits=told).body["HostConfig"]["Ulimits"] is None
