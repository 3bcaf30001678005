"""Other people's code says the same: transparency-dev/merkle and x/mod/sumdb/note, run where Go is installed."""

import base64
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from hub.audit.hashes import leaf_hash
from hub.audit.merkle import consistency_proof, inclusion_proof
from hub.audit.note import sign
from hub.verifier import read_keys
from hub.verifier.note import open_checkpoint
from hub.verifier.tree import Tree, root_by_path
from tests.harness.sealed_log import HUB, HUB_KEY, NEXT_KEY, ORIGIN
from tests.unit.audit.test_merkle import grown

ORACLE = Path(__file__).parents[2] / "oracle"
TREE = 4_000


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Asks the Go program."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    program = tmp_path_factory.mktemp("oracle") / "oracle"
    built = subprocess.run(
        [go, "build", "-o", program, "."], cwd=ORACLE, capture_output=True, text=True, check=False
    )
    if built.returncode:
        pytest.skip(f"the Go modules could not be had: {built.stderr[-300:]}")

    def ask(**questions):
        answer = subprocess.run(
            [program], input=json.dumps(questions), capture_output=True, text=True, check=True
        )
        return json.loads(answer.stdout)

    return ask


def encoded(hashes):
    return [base64.b64encode(digest).decode() for digest in hashes]


def test_roots_and_proofs_of_random_trees_are_the_same(oracle):
    chance = random.Random(6962)
    leaves = [chance.randbytes(chance.randrange(1, 60)) for _ in range(TREE)]
    nodes, roots, _ = grown(leaves)
    sizes = [0, 1, 2, 3, *sorted(chance.sample(range(4, TREE + 1), 300)), TREE]
    included = [(chance.randrange(size), size) for size in sizes[1:]] + [(0, TREE), (TREE - 1, TREE)]
    consistent = [(chance.randrange(1, size + 1), size) for size in sizes[1:]] + [(2048, TREE), (2049, TREE)]
    inclusion = [inclusion_proof(index, size, nodes) for index, size in included]
    consistency = [consistency_proof(old, size, nodes) for old, size in consistent]

    told = oracle(
        Leaves=encoded(leaves),
        Sizes=sizes,
        Inclusion=[{"At": index, "Size": size} for index, size in included],
        Consistency=[{"At": old, "Size": size} for old, size in consistent],
        OurInclusion=[encoded(proof) for proof in inclusion],
        OurConsistency=[encoded(proof) for proof in consistency],
    )

    assert encoded(roots[size] for size in sizes) == told["Roots"]
    assert [encoded(proof) for proof in inclusion] == [proof or [] for proof in told["Inclusion"]]
    assert [encoded(proof) for proof in consistency] == [proof or [] for proof in told["Consistency"]]
    assert all(told["OurInclusion"])
    assert all(told["OurConsistency"])

    tree = Tree()  # and the verifier's own tree
    for size, digest in enumerate(map(leaf_hash, leaves), start=1):
        tree.add(digest)
        assert size not in sizes or roots[size] == tree.root()
    for (index, size), proof in zip(included, inclusion, strict=True):
        assert roots[size] == root_by_path(leaf_hash(leaves[index]), index, size, proof)


def test_go_opens_our_checkpoints_and_we_open_what_go_signed(oracle):
    checkpoint = sign(ORIGIN, 5, b"\7" * 32, [HUB_KEY])
    twice = sign(ORIGIN, 5, b"\7" * 32, [HUB_KEY, NEXT_KEY])
    text = checkpoint.split("\n\n")[0] + "\n"
    notes = [(checkpoint, HUB_KEY), (twice, HUB_KEY), (twice, NEXT_KEY)]

    told = oracle(
        Notes=[{"Note": note, "Vkey": by.vkey} for note, by in notes], Text=text, Skey=HUB_KEY.private_line
    )

    assert [note.split("\n\n")[0] + "\n" for note, _ in notes] == told["Texts"]
    assert checkpoint == told["Signed"]
    assert ((ORIGIN, 5, b"\7" * 32, HUB.keys()), []) == open_checkpoint(told["Signed"], HUB)
    assert read_keys(HUB_KEY.vkey).keys() == HUB.keys()
