package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// HTTP by hand: net/http would make the program, and with it every image that is replicated in the tests, three times as large.

type status struct {
	A      uint64 `json:"a"`
	B      uint64 `json:"b"`
	LastMs int64  `json:"last_ms"`
	// OK: both files were whole, and of one instant, when the service started.
	OK        bool      `json:"ok"`
	Boot      []verdict `json:"boot"`
	GapAtBoot int64     `json:"gap_at_boot"`
	UpSeconds float64   `json:"up_s"`
	PerSecond uint64    `json:"per_s"`
	BootID    string    `json:"boot_id"`
	// Now, on /verify only: both files, read again whole.
	Now []verdict `json:"now,omitempty"`
}

func (s *service) serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go s.answer(connection)
	}
}

func (s *service) answer(connection net.Conn) {
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(60 * time.Second))
	reader := bufio.NewReader(connection)
	first, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	for { // The rest of the head: closing with unread bytes would reset the connection before the answer is read.
		line, err := reader.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			break
		}
	}
	words := strings.Fields(first)
	code, body := "404 Not Found", []byte(`{"error":"GET /status or GET /verify"}`)
	if len(words) >= 2 && words[0] == "GET" && (words[1] == "/status" || words[1] == "/verify") {
		code, body = "200 OK", s.describe(words[1] == "/verify")
	}
	fmt.Fprintf(connection, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", code, len(body)+1, body)
}

func (s *service) describe(verify bool) []byte {
	l := s.ledger
	now := status{
		A: l.last[0].Load(), B: l.last[1].Load(), LastMs: l.lastMs.Load(), OK: l.healthy, Boot: l.found[:], GapAtBoot: l.gap,
		UpSeconds: time.Since(s.started).Seconds(), PerSecond: s.perSecond.Load(), BootID: bootID(),
	}
	if verify {
		now.Now = []verdict{verifyFile(l.paths[0]), verifyFile(l.paths[1])}
	}
	body, err := json.Marshal(now)
	if err != nil {
		panic(err) // Our own plain struct: a bug.
	}
	return body
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown" // Not Linux: the program runs on a host, in its tests.
	}
	return strings.TrimSpace(string(id))
}
