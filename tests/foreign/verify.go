// Checks a ledger directory with Go's own transparency log packages, and nothing of ours.
//
// Usage: verify DIR, where DIR has checkpoint, checkpoints/*.note, tile/ and keys/policy.
package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// cosigner is a verifier of cosignature/v1 lines, which x/mod leaves to its callers.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (c cosigner) Name() string    { return c.name }
func (c cosigner) KeyHash() uint32 { return c.hash }
func (c cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	head := fmt.Sprintf("cosignature/v1\ntime %d\n", binary.BigEndian.Uint64(sig))
	return ed25519.Verify(c.key, append([]byte(head), msg...), sig[8:])
}

func newCosigner(vkey string) cosigner {
	parts := strings.SplitN(vkey, "+", 3)
	hash, err := strconv.ParseUint(parts[1], 16, 32)
	check(err)
	key, err := base64.StdEncoding.DecodeString(parts[2])
	check(err)
	if key[0] != 4 {
		log.Fatalf("%s is not a cosigner's key", vkey)
	}
	return cosigner{parts[0], uint32(hash), key[1:]}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// tiles reads the tiles of a directory; tlog checks them against the root itself.
type tiles struct{ dir string }

func (t tiles) Height() int                         { return 8 }
func (t tiles) SaveTiles([]tlog.Tile, [][]byte)      {}
func (t tiles) ReadTiles(list []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, tile := range list {
		path := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		data, err := os.ReadFile(filepath.Join(t.dir, path))
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

// records reads the entries of all bundles of a tree of this size.
func records(dir string, size int64) (out [][]byte) {
	for n := int64(0); n*256 < size; n++ {
		tile := tlog.Tile{H: 8, L: 0, N: n, W: 256}
		if size-n*256 < 256 {
			tile.W = int(size - n*256)
		}
		path := "tile/entries/" + strings.TrimPrefix(tile.Path(), "tile/8/0/")
		data, err := os.ReadFile(filepath.Join(dir, path))
		check(err)
		for len(data) > 0 {
			size := binary.BigEndian.Uint16(data)
			out = append(out, data[2:2+size])
			data = data[2+size:]
		}
	}
	return out
}

func main() {
	dir := os.Args[1]
	policy, err := os.ReadFile(filepath.Join(dir, "keys/policy"))
	check(err)
	var logKey note.Verifier
	var voters []note.Verifier
	for _, line := range strings.Split(string(policy), "\n") {
		switch f := strings.Fields(line); {
		case len(f) == 2 && f[0] == "log":
			logKey, err = note.NewVerifier(f[1])
			check(err)
		case len(f) == 3 && f[0] == "witness":
			voters = append(voters, newCosigner(f[2]))
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	check(err)
	opened, err := note.Open(data, note.VerifierList(append(voters, logKey)...))
	check(err)
	if opened.Sigs[0].Name != logKey.Name() {
		log.Fatal("the log's signature is not the first")
	}
	// The format of the Go checksum database differs in its first line alone.
	lines := strings.Split(opened.Text, "\n")
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n" + lines[1] + "\n" + lines[2] + "\n"))
	check(err)

	reader := tlog.TileHashReader(tree, tiles{dir})
	all := records(dir, tree.N)
	if int64(len(all)) != tree.N {
		log.Fatalf("%d records in the bundles of a tree of %d", len(all), tree.N)
	}
	for i, record := range all {
		leaf := tlog.RecordHash(record)
		proof, err := tlog.ProveRecord(tree.N, int64(i), reader)
		check(err)
		check(tlog.CheckRecord(proof, tree.N, tree.Hash, int64(i), leaf))
	}
	older, err := filepath.Glob(filepath.Join(dir, "checkpoints/*.note"))
	check(err)
	for _, path := range older {
		data, err := os.ReadFile(path)
		check(err)
		lines := bytes.Split(data, []byte("\n"))
		size, err := strconv.ParseInt(string(lines[1]), 10, 64)
		check(err)
		root, err := tlog.ParseHash(string(lines[2]))
		check(err)
		proof, err := tlog.ProveTree(tree.N, size, reader)
		check(err)
		check(tlog.CheckTree(proof, tree.N, tree.Hash, size, root))
	}
	fmt.Printf("%s: %d records, %d signatures, %d older checkpoints: all verified\n",
		strings.TrimSpace(lines[0]), len(all), len(opened.Sigs), len(older))
}
