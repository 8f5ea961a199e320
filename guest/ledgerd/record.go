package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
)

// A record is one line of recordBytes bytes, readable with `tail`:
//
//	000000000007 1795428462031 <chain: 64 hex digits> ....... <CRC-32: 8 hex digits>\n
//
// The chain value is SHA-256 over the previous record's chain value, this number and this time; the first record's predecessor
// is the word "genesis". So a record proves every one before it: none can be missing, changed or swapped unseen.
const (
	recordBytes = 128
	genesis     = "genesis"
)

type record struct {
	number uint64
	timeMs int64
	chain  string
}

// next is the record that follows one with the given number and chain value.
func next(number uint64, chain string, timeMs int64) record {
	digest := sha256.Sum256([]byte(fmt.Sprintf("%s %012d %013d", chain, number+1, timeMs)))
	return record{number: number + 1, timeMs: timeMs, chain: hex.EncodeToString(digest[:])}
}

func (r record) encode() []byte {
	head := fmt.Sprintf("%012d %013d %s ", r.number, r.timeMs, r.chain)
	body := head + strings.Repeat(".", recordBytes-len(head)-10) + " "
	return []byte(body + fmt.Sprintf("%08x\n", crc32.ChecksumIEEE([]byte(body))))
}

// isNext tells whether line is the record after (number, chain), and returns it. Everything in the line is compared, not only
// what is parsed.
func isNext(line []byte, number uint64, chain string) (record, bool) {
	var seen uint64
	var timeMs int64
	if _, err := fmt.Sscanf(string(line[:26]), "%d %d", &seen, &timeMs); err != nil {
		return record{}, false
	}
	want := next(number, chain, timeMs)
	return want, string(want.encode()) == string(line)
}
