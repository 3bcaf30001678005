"""The writer's tree against RFC 6962: the published vectors, the definitions taken word for word, properties."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.audit.hashes import EMPTY_ROOT, leaf_hash, node_hash
from hub.audit.merkle import (
    Frontier,
    Node,
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    range_nodes,
    verify_consistency,
    verify_inclusion,
)

# The vectors of Certificate Transparency's reference implementations.
VECTOR = [bytes.fromhex(data) for data in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAF_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
LEAVES_2_3 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
LEAVES_4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
LEAVES_6_7 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
LEAVES_4_5 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"


def grown(leaves):
    """The tree after each leaf: its nodes, its root at each size, its frontier."""
    frontier = Frontier()
    nodes, roots = {}, [frontier.root()]
    for index, data in enumerate(leaves):
        nodes[Node(0, index)] = leaf_hash(data)
        nodes.update(frontier.extend([leaf_hash(data)]))
        roots.append(frontier.root())
    return nodes, roots, frontier


def mth(leaves):
    """MTH(D[n]), section 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m, leaves):
    """PATH(m, D[n]), section 2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m, leaves, whole):
    """SUBPROOF(m, D[n], b), section 2.1.2, word for word."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def split(n):
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def test_the_roots_are_the_published_ones():
    _, roots, _ = grown(VECTOR)

    assert ROOTS == [root.hex() for root in roots]


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [
        (0, 1, []),
        (0, 8, [LEAF_1, LEAVES_2_3, LEAVES_4_7]),
        (5, 8, [LEAF_4, LEAVES_6_7, ROOTS[4]]),
        (2, 3, [ROOTS[2]]),
        (1, 5, [ROOTS[1], LEAVES_2_3, LEAF_4]),
    ],
)
def test_the_inclusion_proofs_are_the_published_ones(index, size, expected):
    nodes, _, _ = grown(VECTOR)

    assert expected == [digest.hex() for digest in inclusion_proof(index, size, nodes)]


@pytest.mark.parametrize(
    ("old", "size", "expected"),
    [
        (1, 1, []),
        (1, 8, [LEAF_1, LEAVES_2_3, LEAVES_4_7]),
        (6, 8, [LEAVES_4_5, LEAVES_6_7, ROOTS[4]]),
        (2, 5, [LEAVES_2_3, LEAF_4]),
    ],
)
def test_the_consistency_proofs_are_the_published_ones(old, size, expected):
    nodes, _, _ = grown(VECTOR)

    assert expected == [digest.hex() for digest in consistency_proof(old, size, nodes)]


def test_every_proof_of_every_small_tree_is_that_of_the_definition():
    leaves = [b"entry %d" % index for index in range(40)]
    nodes, roots, _ = grown(leaves)
    for size in range(1, 41):
        assert mth(leaves[:size]) == roots[size]
        for index in range(size):
            proof = inclusion_proof(index, size, nodes)
            assert path(index, leaves[:size]) == proof
            assert verify_inclusion(leaf_hash(leaves[index]), index, size, proof, roots[size])
        for old in range(1, size + 1):
            proof = consistency_proof(old, size, nodes)
            assert subproof(old, leaves[:size], True) == proof
            assert verify_consistency(old, size, proof, roots[old], roots[size])


@given(st.integers(0, 3_000), st.integers(0, 3_000))
def test_a_range_is_covered_by_perfect_subtrees_without_gap_or_overlap(one, other):
    first, last = sorted((one, other))
    nodes = range_nodes(first, last)

    covered = [leaf for level, index in nodes for leaf in range(index << level, (index + 1) << level)]
    assert list(range(first, last)) == covered
    for left, right in pairwise(nodes):  # and no two of them make one
        assert left.level != right.level or left.index & 1


def test_a_frontier_taken_from_the_stored_nodes_grows_as_the_one_that_was_there_all_along():
    leaves = [b"%d" % index for index in range(200)]
    nodes, roots, _ = grown(leaves)
    for size in (0, 1, 2, 63, 64, 65, 127, 199):
        frontier = Frontier.of(size, [nodes[node] for node in range_nodes(0, size)])
        assert roots[size] == frontier.root()
        completed = [pair for data in leaves[size:] for pair in frontier.extend([leaf_hash(data)])]
        assert roots[200] == frontier.root()
        assert all(nodes[node] == digest for node, digest in completed)


def test_a_frontier_of_too_few_nodes_is_refused():
    with pytest.raises(ValueError, match="perfect subtrees"):
        Frontier.of(3, [b"\0" * 32])


def test_only_nodes_that_are_asked_for_are_needed():
    nodes, _, _ = grown([b"%d" % index for index in range(100)])
    for index, size in [(0, 100), (57, 99), (98, 99)]:
        some = {node: nodes[node] for node in inclusion_nodes(index, size)}
        assert inclusion_proof(index, size, nodes) == inclusion_proof(index, size, some)
        some = {node: nodes[node] for node in consistency_nodes(index, size)}
        assert consistency_proof(index, size, nodes) == consistency_proof(index, size, some)


@given(st.data())
def test_a_proof_that_is_not_the_proof_does_not_verify(data):
    size = data.draw(st.integers(2, 70))
    nodes, roots, _ = grown([b"%d" % index for index in range(size)])
    index = data.draw(st.integers(0, size - 1))
    leaf, proof = nodes[Node(0, index)], inclusion_proof(index, size, nodes)
    at = data.draw(st.integers(0, len(proof) - 1))
    for wrong in (proof[:at] + proof[at + 1 :], [*proof, leaf], [*proof[:at], b"\1" * 32, *proof[at + 1 :]]):
        assert not verify_inclusion(leaf, index, size, wrong, roots[size])
    assert not verify_inclusion(leaf, index, size, proof, roots[size - 1])
    assert not verify_inclusion(leaf, size, size, proof, roots[size])
    assert not verify_inclusion(leaf, (index + 1) % size, size, proof, roots[size])

    old = data.draw(st.integers(1, size - 1))
    proof = consistency_proof(old, size, nodes)
    assert not verify_consistency(old, size, proof, roots[old - 1], roots[size])
    assert not verify_consistency(old, size, proof, roots[old], roots[size - 1])
    assert not verify_consistency(old, size, proof[:-1], roots[old], roots[size])
    assert not verify_consistency(old, size, [*proof, leaf], roots[old], roots[size])


def test_the_empty_tree_and_the_same_tree():
    _, roots, _ = grown([b"one", b"two"])

    assert verify_consistency(0, 2, [], EMPTY_ROOT, roots[2])
    assert verify_consistency(2, 2, [], roots[2], roots[2])
    assert not verify_consistency(2, 2, [], roots[1], roots[2])
    assert not verify_consistency(3, 2, [], roots[2], roots[2])
    with pytest.raises(ValueError, match="no leaf 2"):
        inclusion_nodes(2, 2)
    with pytest.raises(ValueError, match="no beginning"):
        consistency_nodes(3, 2)
