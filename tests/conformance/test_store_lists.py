"""Reading: pages, selectors, events, the log of changes, and Unknown, on every store."""

import pytest

from builders import NOW, a_manifest, a_node_manifest, later
from controller.store import open_store
from controller.store.contract import AllocationFilter, Delete, EventFilter, Expired, Invalid, Put, Store
from kakuri.model import EventDraft, EventType, RuntimeClassManifest, State
from kakuri.selector import Selector, parse_selector
from support.store_script import StoreScript

ALL = Selector()


def said(reason: str, *, about: str = "web", message: str = "words", warning: bool = False) -> EventDraft:
    return EventDraft(
        object_kind="Workload",
        object_id=about,
        type=EventType.WARNING if warning else EventType.NORMAL,
        reason=reason,
        message=message,
    )


# -- pages and selectors ---------------------------------------------------------------------------------------------
async def test_pages_go_on_where_the_last_one_ended(script: StoreScript) -> None:
    # Code point order, whatever the database's locale says of '-' and digits.
    ids = ["a", "a-b", "a0", "ab", "b-1", "b1"]
    await script.store.apply([Put(a_manifest(i)) for i in reversed(ids)], now=NOW)
    seen: list[str] = []
    after = None
    while True:
        page = await script.store.list_workloads(selector=ALL, limit=4, after=after)
        assert page.resource_version == await script.store.resource_version()
        seen += [w.id for w in page.items]
        after = page.next
        if after is None:
            break
    assert seen == sorted(ids)
    exact = await script.store.list_workloads(selector=ALL, limit=6)
    assert exact.next is None
    assert await script.store.page_workload_ids(after="a0", limit=2) == ["ab", "b-1"]


async def test_ids_narrow_a_list_to_those_there_are(script: StoreScript) -> None:
    await script.store.apply([Put(a_manifest(i)) for i in "abc"], now=NOW)
    page = await script.store.list_workloads(selector=ALL, ids=["c", "zz", "a", "a"])
    assert [w.id for w in page.items] == ["a", "c"]
    assert (await script.store.list_workloads(selector=ALL, ids=[])).items == []
    assert [c.id for c in (await script.store.list_runtime_classes(ids=["kata"])).items] == ["kata"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=web", ["a", "b"]),
        ("app!=web", ["c", "d"]),
        ("app in (web,db)", ["a", "b", "c"]),
        ("app notin (web,db)", ["d"]),
        ("example.com/tier-1", ["b"]),
        ("!app", ["d"]),
        ("app=web,example.com/tier-1=gold", ["b"]),
        ("empty=", ["d"]),
        ("no.such/key", []),
    ],
)
async def test_selectors_select_by_labels(script: StoreScript, selector: str, expected: list[str]) -> None:
    labels = {
        "a": {"app": "web"},
        "b": {"app": "web", "example.com/tier-1": "gold"},
        "c": {"app": "db"},
        "d": {"empty": ""},
    }
    await script.store.apply([Put(a_manifest(i, labels=of)) for i, of in labels.items()], now=NOW)
    await script.store.apply([Put(a_node_manifest(f"n-{i}", labels=of)) for i, of in labels.items()], now=NOW)
    chosen = parse_selector(selector)
    assert [w.id for w in (await script.store.list_workloads(selector=chosen)).items] == expected
    assert [n.id for n in (await script.store.list_nodes(selector=chosen)).items] == [f"n-{i}" for i in expected]


async def test_nodes_are_selected_by_their_agents_labels_too_and_the_users_win(script: StoreScript) -> None:
    await script.node("n1", labels={"runtime": "edera", "zone": "a"})
    await script.store.apply([Put(a_node_manifest("n1", labels={"zone": "b"}))], now=NOW)

    async def found(selector: str) -> int:
        return len((await script.store.list_nodes(selector=parse_selector(selector))).items)

    assert (await found("runtime=edera"), await found("zone=b"), await found("zone=a")) == (1, 1, 0)


async def test_allocations_are_filtered_by_workload_node_and_the_workloads_labels(script: StoreScript) -> None:
    await script.node("n1")
    await script.node("n2")
    await script.put("web", replicas=2, labels={"app": "web"})
    await script.put("db", labels={"app": "db"})
    first, second = await script.place("web", 0), await script.place("web", 1, node="n2")
    third = await script.place("db", 0)

    async def found(**fields: object) -> list[str]:
        page = await script.store.list_allocations(AllocationFilter(**fields))  # type: ignore[arg-type]
        return [a.id for a in page.items]

    assert await found() == sorted([first, second, third])
    assert await found(workload="web") == [first, second]
    assert await found(node="n1") == sorted([first, third])
    assert await found(selector=parse_selector("app=db")) == [third]
    assert await found(selector=parse_selector("app=web"), node="n2") == [second]
    page = await script.store.list_allocations(AllocationFilter(), limit=2)
    rest = await script.store.list_allocations(AllocationFilter(), limit=2, after=page.next)
    assert [a.id for a in [*page.items, *rest.items]] == sorted([first, second, third])
    assert rest.next is None


async def test_a_nodes_usage_counts_what_is_not_released(script: StoreScript) -> None:
    await script.node()
    await script.put(replicas=2, memory_mb=100, cpu_millicores=250)
    await script.running(slot=0)
    second = await script.running(slot=1)
    status = (await script.store.get_node("n1")).status
    assert (status.allocated_memory_mb, status.allocated_cpu_millicores, status.allocations) == (200, 500, 2)
    await script.report(script.seen(second, "Failed"))
    assert (await script.store.get_node("n1")).status.allocations == 2
    await script.report(script.seen(second, "Failed", released=True))
    (node,) = (await script.store.list_nodes(selector=ALL)).items
    assert (node.status.allocated_memory_mb, node.status.allocations) == (100, 1)


# -- Unknown ---------------------------------------------------------------------------------------------------------
async def test_what_may_run_on_a_silent_node_is_unknown_until_it_is_back(script: StoreScript) -> None:
    await script.node()
    outcome = await script.put()
    allocation = await script.running()
    assert outcome.object is not None
    running = (await script.store.get_workload("web")).status.with_(state=State.RUNNING, reason="", node="n1", nodes=1)
    await script.act(status=running)

    await script.store.set_node_ready("n1", epoch=0, ready=False, reason="NodeSilent", message="no answer", now=NOW)
    shown = await script.store.get_workload("web")
    assert (shown.status.state, shown.status.reason) == (State.UNKNOWN, "NodeSilent")
    assert "n1 is not ready; the last known state is Running" in shown.status.message
    assert (await script.store.get_allocation(allocation)).state is State.UNKNOWN
    assert (await script.put(replicas=2)).object.status.state is State.UNKNOWN  # type: ignore[union-attr]
    view = await script.view()
    assert view.status.state is State.RUNNING, "what is stored is never Unknown"
    assert view.allocations[0].state is State.RUNNING

    await script.store.set_node_ready("n1", epoch=0, ready=True, reason="Ready", message="", now=NOW)
    assert (await script.store.get_workload("web")).status.state is State.RUNNING
    assert (await script.store.get_allocation(allocation)).state is State.RUNNING


async def test_what_has_ended_on_a_silent_node_is_known(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.report(script.seen(allocation, "Succeeded", exit_code=0))
    await script.store.set_node_ready("n1", epoch=0, ready=False, reason="NodeSilent", message="", now=NOW)
    assert (await script.store.get_allocation(allocation)).state is State.SUCCEEDED
    assert (await script.store.get_workload("web")).status.state is State.PENDING


# -- events ----------------------------------------------------------------------------------------------------------
async def test_the_same_event_counts_up_instead_of_filling_the_table(script: StoreScript) -> None:
    await script.store.add_events([said("Pulled"), said("Pulled")], now=NOW)
    await script.store.add_events([said("Pulled"), said("Pulled", message="other words")], now=later(60))
    events = (await script.store.list_events(EventFilter())).items
    counted = {e.message: (e.count, e.first_seen, e.last_seen) for e in events}
    assert counted == {"words": (3, NOW, later(60)), "other words": (1, later(60), later(60))}
    assert len({e.id for e in events}) == 2


async def test_events_are_filtered_and_come_oldest_first_in_pages(script: StoreScript) -> None:
    for second, reason in enumerate(["C", "A", "B"]):
        await script.store.add_events([said(reason)], now=later(second))
    await script.store.add_events([said("W", warning=True, about="db")], now=later(9))
    await script.store.add_events([said("C")], now=later(10))
    page = await script.store.list_events(EventFilter(), limit=2)
    assert [e.reason for e in page.items] == ["A", "B"]
    rest = await script.store.list_events(EventFilter(), limit=2, after=page.next)
    assert ([e.reason for e in rest.items], rest.next) == (["W", "C"], None)

    async def found(**fields: str) -> list[str]:
        return [e.reason for e in (await script.store.list_events(EventFilter(**fields))).items]

    assert await found(object_id="db") == ["W"]
    assert await found(type="Warning") == ["W"]
    assert await found(object_kind="Node") == []
    assert await found(object_kind="Workload", object_id="web", type="Normal") == ["A", "B", "C"]
    only = await script.store.list_events(EventFilter(), ids=[page.items[0].id])
    assert [e.reason for e in only.items] == ["A"]


async def test_a_page_token_of_events_that_is_none_is_invalid(store: Store) -> None:
    await store.add_events([said("A")], now=NOW)
    for token in ("nonsense", "2020-01-01T00:00:00/x", ""):
        with pytest.raises(Invalid, match="is no place to continue"):
            await store.list_events(EventFilter(), after=token)


# -- the log of changes ----------------------------------------------------------------------------------------------
async def test_changes_tell_what_was_written_in_commit_order(script: StoreScript) -> None:
    start = await script.store.resource_version()
    await script.put("a")
    await script.store.apply([Put(RuntimeClassManifest(id="fc", handler="fc")), Put(a_manifest("b"))], now=NOW)
    await script.store.apply([Delete("RuntimeClass", "fc")], now=NOW)
    await script.store.add_events([said("A")], now=NOW)
    changes = await script.store.changes_since(start)
    assert [(c.kind, c.id, c.deleted) for c in changes[:4]] == [
        ("Workload", "a", False),
        ("RuntimeClass", "fc", False),
        ("Workload", "b", False),
        ("RuntimeClass", "fc", True),
    ]
    assert changes[4].kind == "Event"
    assert [c.resource_version for c in changes] == list(range(start + 1, start + 6))
    assert (await script.store.get_workload("b")).resource_version == start + 3
    assert (await script.store.list_events(EventFilter())).items[0].resource_version == start + 5
    assert await script.store.changes_since(start, limit=2) == changes[:2]
    assert await script.store.changes_since(start + 5) == []


async def test_a_version_that_was_never_reached_is_expired(store: Store) -> None:
    with pytest.raises(Expired, match="was never reached"):
        await store.changes_since(await store.resource_version() + 1)


async def test_changes_that_are_no_longer_held_are_expired_and_events_stay_bounded(store_url: str) -> None:
    store = await open_store(store_url, changes_kept=40, events_kept=10)
    try:
        for i in range(100):
            await store.add_events([said("A", message=f"number {i}")], now=later(i))
        newest = await store.resource_version()
        assert newest == 100
        with pytest.raises(Expired, match="are no longer held"):
            await store.changes_since(0)
        held = await store.changes_since(newest - 40)
        assert [c.resource_version for c in held] == list(range(61, 101))
        events = (await store.list_events(EventFilter())).items
        assert 10 <= len(events) <= 12
        assert events[-1].message == "number 99"
    finally:
        await store.close()
