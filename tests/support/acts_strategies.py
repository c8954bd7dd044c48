"""What Hypothesis may say: well-formed acts, budgets and bodies."""

from hypothesis import strategies as st

from protocol.acts import Act
from protocol.budget import Budget
from protocol.keys import KeyKind, Signer
from protocol.vocabulary import BODIES, Said

NODE = Signer(b"n" * 32, KeyKind.NODE)
OTHER = Signer(b"o" * 32, KeyKind.NODE)
MESH = Signer(b"m" * 32, KeyKind.MESH)

counts = st.integers(0, 2**53 - 1)
ids = st.binary(min_size=16, max_size=16)
budgets = st.builds(Budget, counts, counts, counts, counts)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
open_kinds = st.sampled_from([kind for kind, body in BODIES.items() if body is Said]) | st.just("dance")


@st.composite
def acts(draw: st.DrawFn) -> Act:
    """An act of a kind whose body is free beyond its text."""
    body = draw(st.dictionaries(texts, values, max_size=3)) | {"text": draw(texts)}
    identity, refs = draw(ids), draw(st.lists(ids, max_size=3))
    root = draw(ids) if refs else identity
    return Act(identity, draw(open_kinds), draw(names), refs, root, draw(budgets), draw(counts), body)
