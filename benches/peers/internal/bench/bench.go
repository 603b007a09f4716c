// Package bench lets a program that asks measure the cases of this one, round by round.
package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"time"
)

// SetUp prepares a case and returns its operation, which is measured.
type SetUp func() (func() error, error)

// Serve answers one line on standard input with one on standard output, until the input ends.
// `CASE NANOSECONDS THREADS` runs the operation for that long and is answered by
// `OPERATIONS NANOSECONDS`; what went wrong is answered by `error MESSAGE`.
func Serve(cases map[string]SetUp) {
	server := server{cases: cases, ready: map[string]func() error{}}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		operations, took, err := server.answer(lines.Text())
		if err != nil {
			fmt.Printf("error %q\n", err.Error())
			continue
		}
		fmt.Println(operations, took.Nanoseconds())
	}
	if err := lines.Err(); err != nil && err != io.EOF {
		fmt.Fprintln(os.Stderr, "cannot read what to measure:", err)
		os.Exit(1)
	}
}

type server struct {
	cases map[string]SetUp
	ready map[string]func() error
}

func (s *server) answer(line string) (operations int, took time.Duration, err error) {
	var name string
	var nanoseconds int64
	var threads int
	if _, err := fmt.Sscan(line, &name, &nanoseconds, &threads); err != nil {
		return 0, 0, fmt.Errorf("%q is not `CASE NANOSECONDS THREADS`: %w", line, err)
	}
	if threads != 1 {
		return 0, 0, fmt.Errorf("the peers run on one thread, not on %d", threads)
	}
	operation, there := s.ready[name]
	if !there {
		setUp, known := s.cases[name]
		if !known {
			return 0, 0, fmt.Errorf("no case is called %q", name)
		}
		if operation, err = setUp(); err != nil {
			return 0, 0, err
		}
		s.ready[name] = operation
	}
	return measure(operation, time.Duration(nanoseconds))
}

// measure looks at the clock only after every batch, and sizes batches so that they take a
// fiftieth of the time.
func measure(operation func() error, span time.Duration) (int, time.Duration, error) {
	batch := 1
	for {
		took, err := run(operation, batch)
		if err != nil {
			return 0, 0, err
		}
		if took >= span/50 {
			break
		}
		batch *= 2
	}
	operations := 0
	begun := time.Now()
	for {
		if _, err := run(operation, batch); err != nil {
			return 0, 0, err
		}
		operations += batch
		if took := time.Since(begun); took >= span {
			return operations, took, nil
		}
	}
}

func run(operation func() error, batch int) (time.Duration, error) {
	begun := time.Now()
	for range batch {
		if err := operation(); err != nil {
			return 0, err
		}
	}
	return time.Since(begun), nil
}
