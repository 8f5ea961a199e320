package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
)

// verdict is what a whole reading of one file says.
type verdict struct {
	// Last is the number of the last whole record; every number from 1 to it is there.
	Last uint64 `json:"last"`
	// LastMs is the guest's time of that record, ms since 1970.
	LastMs int64  `json:"last_ms"`
	OK     bool   `json:"ok"`
	Err    string `json:"err,omitempty"`
	// Torn is the number of bytes behind the last whole record: what a crash in mid-write may leave, at most one record.
	Torn  int64  `json:"torn_tail_bytes"`
	Chain string `json:"chain"`
	whole int64
}

// verifyFile reads every record. A file that is not there is an empty ledger.
func verifyFile(path string) verdict {
	result := verdict{OK: true, Chain: genesis}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return result
	}
	if err != nil {
		return verdict{Err: err.Error()}
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 128<<10)
	line := make([]byte, recordBytes)
	for {
		count, err := io.ReadFull(reader, line)
		if errors.Is(err, io.EOF) {
			return result
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			result.Torn = int64(count)
			return result
		}
		if err != nil {
			return verdict{Last: result.Last, Err: err.Error()}
		}
		read, ok := isNext(line, result.Last, result.Chain)
		if !ok {
			return judgeTail(result, file)
		}
		result.Last, result.LastMs, result.Chain = read.number, read.timeMs, read.chain
		result.whole += recordBytes
	}
}

// judgeTail: one damaged record at the very end is a torn write; anything longer is damage.
func judgeTail(result verdict, file *os.File) verdict {
	info, err := file.Stat()
	if err != nil {
		return verdict{Last: result.Last, Err: err.Error()}
	}
	result.Torn = info.Size() - result.whole
	if result.Torn > recordBytes {
		result.OK = false
		result.Err = fmt.Sprintf("record %d is damaged or missing, and %d bytes follow record %d", result.Last+1, result.Torn, result.Last)
	}
	return result
}
