// ledgerd writes numbered, hash-chained, checksummed records to two disks in turn, each with fsync, and serves over HTTP what it has.
// After a crash, a restore or a failover anyone can see which record is the last, that none before it is missing, and whether the
// two disks show the same instant.
//
//	ledgerd                  run; settings from /etc/ledger.conf, then `ledger.KEY=VALUE` of the kernel's command line
//	ledgerd verify FILE …    read files on any machine; one JSON line each; exit 1 when one is damaged
//
// Settings: a, b (the files), hz (records a second; 0: as fast as both disks sync), port.
//
// Console lines, for whoever watches the machine: LEDGER-READY, LEDGER-STOP, LEDGER-FATAL.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

type service struct {
	ledger    *ledger
	started   time.Time
	perSecond atomic.Uint64
}

func main() {
	if len(os.Args) >= 3 && os.Args[1] == "verify" {
		os.Exit(verifyAll(os.Args[2:]))
	}
	if err := run(); err != nil {
		fmt.Println("LEDGER-FATAL", err)
		os.Exit(1)
	}
}

func verifyAll(paths []string) int {
	code := 0
	for _, path := range paths {
		result := verifyFile(path)
		line, err := json.Marshal(result)
		if err != nil {
			panic(err) // Our own plain struct: a bug.
		}
		fmt.Println(string(line))
		if !result.OK {
			code = 1
		}
	}
	return code
}

func run() error {
	settings := readSettings()
	hz, err := strconv.ParseFloat(settings["hz"], 64)
	if err != nil || hz < 0 {
		return fmt.Errorf("hz %q: expected a number of records a second, or 0", settings["hz"])
	}
	opened, err := openLedger([2]string{settings["a"], settings["b"]})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", ":"+settings["port"])
	if err != nil {
		return err
	}
	s := &service{ledger: opened, started: time.Now()}
	go s.serve(listener)
	fmt.Printf("LEDGER-READY a=%d b=%d ok=%v gap=%d\n", opened.found[0].Last, opened.found[1].Last, opened.healthy, opened.gap)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	if !opened.healthy {
		<-stop // Nothing is written over the evidence; /status and /verify tell.
		return nil
	}
	err = s.write(hz, stop)
	fmt.Printf("LEDGER-STOP a=%d b=%d\n", opened.last[0].Load(), opened.last[1].Load())
	return err
}

func (s *service) write(hz float64, stop <-chan os.Signal) error {
	pause := time.Duration(0)
	if hz > 0 {
		pause = time.Duration(float64(time.Second) / hz)
	}
	windowStart, windowNumber := time.Now(), s.ledger.number
	due := time.Now()
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(time.Until(due)):
		}
		if err := s.ledger.append(time.Now()); err != nil {
			return err
		}
		if due = due.Add(pause); due.Before(time.Now()) {
			due = time.Now() // Disks slower than hz: no burst afterwards.
		}
		if window := time.Since(windowStart); window > time.Second {
			s.perSecond.Store(uint64(float64(s.ledger.number-windowNumber) / window.Seconds()))
			windowStart, windowNumber = time.Now(), s.ledger.number
		}
	}
}

func readSettings() map[string]string {
	settings := map[string]string{"a": "/var/ledger/a.log", "b": "/data/b.log", "hz": "10", "port": "8080"}
	if text, err := os.ReadFile("/etc/ledger.conf"); err == nil {
		for _, word := range strings.Fields(string(text)) {
			setFrom(word, settings)
		}
	}
	if text, err := os.ReadFile("/proc/cmdline"); err == nil {
		for _, word := range strings.Fields(string(text)) {
			if ours, ok := strings.CutPrefix(word, "ledger."); ok {
				setFrom(ours, settings)
			}
		}
	}
	return settings
}

func setFrom(word string, settings map[string]string) {
	if key, value, ok := strings.Cut(word, "="); ok {
		settings[key] = value
	}
}
