package node

import (
	"fmt"
	"os"
	"regexp"
)

// Logged counts the events in the logs of drivers. Several nodes may share one, if no two of them
// are used at the same time.
type Logged struct {
	Repairs map[string]int // by the problem that a starting driver found and the repair that it made
	Foreign int            // commits of others between two steps
	Delays  int            // steps that were made to wait
}

// NewLogged returns empty counts.
func NewLogged() *Logged { return &Logged{Repairs: map[string]int{}} }

// disaster matches lines that no log may contain.
var disaster = regexp.MustCompile(`(?m)^(panic:|fatal error:|WARNING: DATA RACE|unexpected fault|E.*\] "Panic").*`)

// repair matches the line by which a starting driver logs a problem and its repair.
var repair = regexp.MustCompile(`"Reconciled".* problem="(\w+)".* repair="(\w*)"`)

// disturbance matches the line by which a disturbed driver logs a commit or a wait.
var disturbance = regexp.MustCompile(`"Disturbed" .* commit=(true|false) wait="(\S+)"`)

// ReadLog counts the events since the last call. It fails if a driver has panicked or had a race.
func (n *Node) ReadLog() error {
	text, err := os.ReadFile(n.Log)
	if err != nil {
		return err
	}
	fresh := text[n.logRead:]
	n.logRead = len(text)
	for _, match := range repair.FindAllSubmatch(fresh, -1) {
		n.Logged.Repairs[fmt.Sprintf("%s, %s", match[1], match[2])]++
	}
	for _, match := range disturbance.FindAllSubmatch(fresh, -1) {
		if string(match[1]) == "true" {
			n.Logged.Foreign++
		}
		if string(match[2]) != "0s" {
			n.Logged.Delays++
		}
	}
	if at := disaster.FindIndex(fresh); at != nil {
		return fmt.Errorf("driver: %s", fresh[at[0]:min(len(fresh), at[0]+8<<10)])
	}
	return nil
}
