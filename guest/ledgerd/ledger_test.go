package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func fill(t *testing.T, paths [2]string, count int) {
	t.Helper()
	l, err := openLedger(paths)
	if err != nil || !l.healthy {
		t.Fatalf("open: %v, healthy %v", err, l.healthy)
	}
	for i := 0; i < count; i++ {
		if err := l.append(time.UnixMilli(1795428462031 + int64(i))); err != nil {
			t.Fatal(err)
		}
	}
}

func pair(t *testing.T) [2]string {
	folder := t.TempDir()
	return [2]string{filepath.Join(folder, "a"), filepath.Join(folder, "b")}
}

func TestAnyDamageBeforeTheLastRecordIsSeen(t *testing.T) {
	paths := pair(t)
	fill(t, paths, 20)
	whole, _ := os.ReadFile(paths[0])
	for at := 0; at < 18*recordBytes; at += 17 {
		damaged := append([]byte{}, whole...)
		damaged[at] ^= 1
		if err := os.WriteFile(paths[0], damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		if v := verifyFile(paths[0]); v.OK || v.Last != uint64(at/recordBytes) {
			t.Fatalf("byte %d changed: %+v", at, v)
		}
	}
	// A record left out, with every remaining one intact.
	if err := os.WriteFile(paths[0], append(append([]byte{}, whole[:5*recordBytes]...), whole[6*recordBytes:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	if v := verifyFile(paths[0]); v.OK || v.Last != 5 {
		t.Fatalf("record 6 left out: %+v", v)
	}
}

func TestATornTailIsCutOffAndTheOtherDiskCatchesUp(t *testing.T) {
	paths := pair(t)
	fill(t, paths, 7)
	// As a crash leaves it: record 7 is on A only, and half of record 8.
	if err := os.Truncate(paths[1], 6*recordBytes); err != nil {
		t.Fatal(err)
	}
	a, _ := os.OpenFile(paths[0], os.O_APPEND|os.O_WRONLY, 0)
	a.Write(make([]byte, 50))
	a.Close()
	l, err := openLedger(paths)
	if err != nil || !l.healthy || l.gap != 1 || l.found[0].Torn != 50 {
		t.Fatalf("%v %+v", err, l)
	}
	fill(t, paths, 3)
	for _, path := range paths {
		if v := verifyFile(path); !v.OK || v.Last != 10 || v.Torn != 0 {
			t.Fatalf("%s: %+v", path, v)
		}
	}
}

func TestDisksOfDifferentInstantsAreRefusedAndLeftAlone(t *testing.T) {
	paths := pair(t)
	fill(t, paths, 9)
	if err := os.Truncate(paths[1], 7*recordBytes); err != nil {
		t.Fatal(err)
	}
	l, err := openLedger(paths)
	if err != nil || l.healthy || l.gap != 2 {
		t.Fatalf("%v %+v", err, l)
	}
	if v := verifyFile(paths[0]); v.Last != 9 {
		t.Fatalf("%+v", v)
	}
	fresh := [2]string{paths[1], paths[0]} // B ahead of A: never written by us.
	if l, _ := openLedger(fresh); l.healthy {
		t.Fatal("B ahead of A was taken for healthy")
	}
}
