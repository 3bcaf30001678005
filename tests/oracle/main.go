// The log's tree and notes by other people's code: transparency-dev/merkle and golang.org/x/mod/sumdb/note.
// Reads questions as JSON on standard input, writes the answers as JSON. See tests/unit/audit/test_oracle.py.
package main

import (
	"encoding/json"
	"os"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"golang.org/x/mod/sumdb/note"
)

type pair struct{ At, Size uint64 }

type questions struct {
	Leaves      [][]byte
	Sizes       []uint64
	Inclusion   []pair
	Consistency []pair
	// Proofs of ours, to be verified.
	OurInclusion   [][][]byte
	OurConsistency [][][]byte
	Notes          []struct{ Note, Vkey string }
	// Text to be signed with a private key of ours.
	Text, Skey string
}

type answers struct {
	Roots          [][]byte
	Inclusion      [][][]byte
	Consistency    [][][]byte
	OurInclusion   []bool
	OurConsistency []bool
	Texts          []string
	Signed         string
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var asked questions
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	hasher := rfc6962.DefaultHasher
	tree := testonly.New(hasher)
	tree.AppendData(asked.Leaves...)
	var told answers
	for _, size := range asked.Sizes {
		told.Roots = append(told.Roots, tree.HashAt(size))
	}
	for i, of := range asked.Inclusion {
		path, err := tree.InclusionProof(of.At, of.Size)
		must(err)
		told.Inclusion = append(told.Inclusion, path)
		err = proof.VerifyInclusion(hasher, of.At, of.Size, hasher.HashLeaf(asked.Leaves[of.At]), asked.OurInclusion[i], tree.HashAt(of.Size))
		told.OurInclusion = append(told.OurInclusion, err == nil)
	}
	for i, of := range asked.Consistency {
		path, err := tree.ConsistencyProof(of.At, of.Size)
		must(err)
		told.Consistency = append(told.Consistency, path)
		err = proof.VerifyConsistency(hasher, of.At, of.Size, asked.OurConsistency[i], tree.HashAt(of.At), tree.HashAt(of.Size))
		told.OurConsistency = append(told.OurConsistency, err == nil)
	}
	for _, given := range asked.Notes {
		verifier, err := note.NewVerifier(given.Vkey)
		must(err)
		opened, err := note.Open([]byte(given.Note), note.VerifierList(verifier))
		must(err)
		told.Texts = append(told.Texts, opened.Text)
	}
	if asked.Skey != "" {
		signer, err := note.NewSigner(asked.Skey)
		must(err)
		signed, err := note.Sign(&note.Note{Text: asked.Text}, signer)
		must(err)
		told.Signed = string(signed)
	}
	must(json.NewEncoder(os.Stdout).Encode(told))
}
