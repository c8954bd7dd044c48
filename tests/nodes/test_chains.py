"""Chains end, whoever answers, however many at once."""

import msgspec
from harness import BUDGET, MESH_ID, NODE, NOW, root
from hypothesis import given
from hypothesis import strategies as st

from mesh.entries import Entry
from nodes.chains import Chains
from protocol.acts import Act, new_id
from protocol.budget import Budget, check_child
from protocol.keys import KeyKind, MeshId, NodeId, Signer

COST = 10


def entry(act: Act) -> Entry:
    return Entry(1, "yappings", MESH_ID, NodeId(NODE.public), act)


def reply(parent: Act, budget: Budget, number: int) -> Act:
    identity = new_id(NOW + number, number.to_bytes(10, "big"))
    return Act(identity, "say", "aporia", [parent.id], parent.root, budget, NOW, {"text": "x"})


@given(
    st.builds(Budget, st.integers(1, 8), st.integers(0, 12), st.integers(0, 300), st.just(NOW + 1)),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, COST), st.integers(0, 2)), max_size=80),
)
def test_no_more_acts_or_tokens_than_the_root_minted(limit: Budget, moves: list[tuple[int, int, int]]) -> None:
    """Random replies to random acts of a chain: begun together, ended together, and heard of late."""
    chains, start = Chains(MESH_ID), root("hello", 1, budget=limit)
    chains.hear(entry(start))
    heard, open_turns, travelling, tokens = [start], [], [], 0
    for place, used, step in moves:
        if step == 0 and chains.reserve(parent := heard[place % len(heard)], COST, NOW) is None:
            open_turns.append((parent, used))
        if step == 1 and open_turns:
            answered, spent = open_turns.pop(place % len(open_turns))
            budget = chains.settle(answered, COST, spent)
            tokens += spent
            check_child(answered.budget, budget)
            travelling.append(reply(answered, budget, len(heard) + len(travelling)))
            chains.promise(travelling[-1])
        if step == 2 and travelling:
            heard.append(travelling.pop(0))
            chains.hear(entry(heard[-1]))
    assert len(heard) - 1 + len(travelling) + len(open_turns) <= limit.acts
    assert tokens + COST * len(open_turns) <= limit.tokens


@given(st.integers(2, 6), st.integers(1, 10), st.integers(1, 40))
def test_n_nodes_say_at_most_n_minus_one_acts_too_many(nodes: int, ems: int, acts: int) -> None:
    """All ems of all nodes answer whatever they hear, at once, and hear each other only when they have spoken."""
    start = root("x", 1, budget=msgspec.structs.replace(BUDGET, acts=acts, hops=1_000, tokens=10**9))
    meshes = [MeshId(Signer(bytes([n + 1]) * 32, KeyKind.MESH).public) for n in range(nodes)]
    each = [Chains(mesh, sharers=lambda _: nodes - 1) for mesh in meshes]
    fresh, said = [(meshes[0], start)], list[Act]()
    while fresh:
        for mesh, act in fresh:
            for chains in each:
                chains.hear(entry(act)._replace(mesh=mesh))
        answered, fresh = fresh[-1][1], []
        for mesh, chains in zip(meshes, each, strict=True):
            begun = [1 for _ in range(ems) if chains.reserve(answered, COST, NOW) is None]
            for _ in begun:
                said.append(reply(answered, chains.settle(answered, COST, 1), len(said) + 2))
                fresh.append((mesh, said[-1]))
    assert acts <= len(said) <= acts + nodes - 1


def test_a_failed_reply_gives_its_reservation_back() -> None:
    chains, start = Chains(MESH_ID), root("x", 1, budget=msgspec.structs.replace(BUDGET, acts=1))
    chains.hear(entry(start))
    assert chains.reserve(start, COST, NOW) is None
    assert chains.reserve(start, COST, NOW) == "no acts left"
    chains.settle(start, COST, 0)
    assert chains.reserve(start, COST, NOW) is None


def test_a_reply_that_could_cost_more_than_is_left_is_not_begun() -> None:
    chains, start = Chains(MESH_ID), root("x", 1, budget=msgspec.structs.replace(BUDGET, tokens=15))
    chains.hear(entry(start))
    assert chains.reserve(start, 10, NOW) is None
    assert chains.reserve(start, 10, NOW) == "too few tokens left for a reply"


def test_what_others_spent_is_read_from_their_acts() -> None:
    chains, start = Chains(MESH_ID), root("x", 1)
    chains.hear(entry(start))
    chains.hear(entry(reply(start, Budget(5, 15, 3, BUDGET.until_ms), 2)))
    assert chains.reserve(start, 10, NOW) == "too few tokens left for a reply"


def test_a_person_stops_what_began_before_and_nothing_later() -> None:
    chains, before, after = Chains(MESH_ID), root("x", 1), root("y", 2)
    chains.hear(entry(before))
    chains.hear(entry(root("enough", 3, kind="cancel")))
    chains.hear(entry(after))
    assert chains.spent(before, NOW) == "a person stopped it"
    assert chains.stopped(before)
    assert chains.spent(after, NOW) is None


def test_a_chain_that_nobody_remembers_is_not_answered() -> None:
    assert Chains(MESH_ID).spent(root("x"), NOW) == "its chain is forgotten"


def test_a_copy_of_a_root_ends_no_chain_and_pays_for_itself_alone() -> None:
    """Two meshes begin something under one id, the first with nothing to spend: the other's is answered at its cost."""
    hers, his = (MeshId(Signer(key * 32, KeyKind.MESH).public) for key in (b"t", b"x"))
    chains = Chains(MESH_ID, lambda _basin, _now: BUDGET)
    copy, start = root("his", 1, budget=Budget(0, 0, 0, 0)), root("hers", 1, budget=BUDGET)
    said = [entry(copy)._replace(mesh=his), entry(start)._replace(mesh=hers)]
    for one in said:
        chains.hear(one)
    assert [chains.charge(one) for one in said] == [(his, False), (hers, False)]
    assert chains.spent(copy, NOW) == "no hops left"
    assert chains.reserve(start, COST, NOW) is None
    chains.charged(start, hers)
    assert chains.settle(start, COST, COST).acts == BUDGET.acts - 1
    assert [chains.charge(one) for one in said] == [(his, False), (hers, True)]


def test_nobody_widens_a_chain_of_ours() -> None:
    other = MeshId(Signer(b"x" * 32, KeyKind.MESH).public)
    chains, start = Chains(MESH_ID, lambda _basin, _now: BUDGET), root("x", 1, budget=Budget(1, 1, COST, NOW + 1))
    chains.hear(entry(start))
    chains.hear(entry(root("x", 1, budget=BUDGET))._replace(mesh=other))
    assert chains.reserve(start, COST, NOW) is None
    chains.settle(start, COST, COST)
    chains.promise(start)
    assert chains.reserve(start, 0, NOW) == "no acts left"


def test_an_answer_to_another_meshs_copy_of_our_root_is_paid_for_by_that_mesh() -> None:
    """Whoever hears our root can use its id for one of their own: that gives them no answers at our cost."""
    other = MeshId(Signer(b"x" * 32, KeyKind.MESH).public)
    chains, start = Chains(MESH_ID, lambda _basin, _now: BUDGET), root("ours", 1)
    copy = entry(root("theirs", 1))._replace(mesh=other)
    chains.hear(entry(start))
    chains.hear(copy)
    assert chains.charge(entry(start)) is None
    assert chains.charge(copy) == (other, False)


def test_nobody_pays_for_our_own_root_under_an_id_that_somebody_used_before() -> None:
    other = MeshId(Signer(b"x" * 32, KeyKind.MESH).public)
    chains, start = Chains(MESH_ID, lambda _basin, _now: BUDGET), root("ours", 1)
    chains.hear(entry(root("theirs", 1))._replace(mesh=other))
    chains.hear(entry(start))
    assert chains.charge(entry(start)) is None


def test_a_copy_of_a_root_with_more_to_spend_does_not_end_the_chain() -> None:
    """What is counted against a chain is counted from what it began with, and not from what a copy says."""
    hers, his = (MeshId(Signer(key * 32, KeyKind.MESH).public) for key in (b"t", b"x"))
    chains = Chains(MESH_ID, lambda _basin, _now: BUDGET)
    begun = Budget(BUDGET.hops + 2, BUDGET.acts, BUDGET.tokens + 100, BUDGET.until_ms)
    start = root("hers", 1, budget=begun)
    chains.hear(entry(start)._replace(mesh=hers))
    chains.hear(entry(root("his", 1, budget=Budget(10_000, 10_000, 10**9, 2**50)))._replace(mesh=his))
    said = reply(start, start.budget.child(BUDGET.acts, begun.tokens - 10), 2)
    chains.hear(entry(said)._replace(mesh=hers))
    assert chains.reserve(said, COST, NOW) is None
