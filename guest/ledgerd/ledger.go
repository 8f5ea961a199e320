package main

import (
	"os"
	"sync/atomic"
	"time"
)

// ledger appends each record to two files on two disks: A, fsync, then B, fsync. So whatever instant both disks are seen at, if it
// is one instant, A is ahead of B by no record or by one. Any other distance says: the disks are not of the same time.
type ledger struct {
	files   [2]*os.File
	paths   [2]string
	found   [2]verdict
	gap     int64
	healthy bool
	number  uint64
	chain   string
	last    [2]atomic.Uint64
	lastMs  atomic.Int64
}

// openLedger reads both files whole. An unhealthy pair is left exactly as it was found, for people to look at.
func openLedger(paths [2]string) (*ledger, error) {
	opened := &ledger{paths: paths}
	for i, path := range paths {
		opened.found[i] = verifyFile(path)
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		opened.files[i] = file
		opened.last[i].Store(opened.found[i].Last)
	}
	a, b := opened.found[0], opened.found[1]
	opened.gap = int64(a.Last) - int64(b.Last)
	opened.healthy = a.OK && b.OK && opened.gap >= 0 && opened.gap <= 1
	opened.number, opened.chain = a.Last, a.Chain
	opened.lastMs.Store(a.LastMs)
	if !opened.healthy {
		return opened, nil
	}
	return opened, opened.repair()
}

// repair cuts off torn tails, and carries the one record that A has and B has not over to B.
func (l *ledger) repair() error {
	for i, file := range l.files {
		if err := file.Truncate(l.found[i].whole); err != nil {
			return err
		}
		if _, err := file.Seek(l.found[i].whole, 0); err != nil {
			return err
		}
	}
	if l.gap == 0 {
		return nil
	}
	line := make([]byte, recordBytes)
	if _, err := l.files[0].ReadAt(line, l.found[0].whole-recordBytes); err != nil {
		return err
	}
	return l.put(1, line, l.found[0].Last)
}

func (l *ledger) append(now time.Time) error {
	record := next(l.number, l.chain, now.UnixMilli())
	line := record.encode()
	for i := range l.files {
		if err := l.put(i, line, record.number); err != nil {
			return err
		}
	}
	l.number, l.chain = record.number, record.chain
	l.lastMs.Store(record.timeMs)
	return nil
}

// put returns once the record is on the disk: only then is its number published.
func (l *ledger) put(which int, line []byte, number uint64) error {
	if _, err := l.files[which].Write(line); err != nil {
		return err
	}
	if err := l.files[which].Sync(); err != nil {
		return err
	}
	l.last[which].Store(number)
	return nil
}
