package node

import (
	"fmt"
	"os"
	"regexp"
)

// Logged counts what drivers have logged. Several nodes may share one, if they are not used at
// the same time.
type Logged struct {
	Repairs map[string]int // what drivers that started found half done, and did about it
	Foreign int            // commits of others between two steps of an operation
	Delays  int            // steps that were made to wait
}

// NewLogged returns one that has counted nothing.
func NewLogged() *Logged { return &Logged{Repairs: map[string]int{}} }

// disaster is what no log may hold.
var disaster = regexp.MustCompile(`(?m)^(panic:|fatal error:|WARNING: DATA RACE|unexpected fault|E.*\] "Panic").*`)

// repair is how a driver that starts logs what it found half done.
var repair = regexp.MustCompile(`"Reconciled".* problem="(\w+)".* repair="(\w*)"`)

// disturbance is how a driver logs that it was disturbed.
var disturbance = regexp.MustCompile(`"Disturbed" .* commit=(true|false) wait="(\S+)"`)

// ReadLog reads what the drivers have written since it was read last.
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
