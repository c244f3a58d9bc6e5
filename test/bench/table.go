package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"
)

// printTable writes the rows for people at a terminal.
func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "OPERATION\tAT ONCE\tQUOTA\tWITH\tOURS\t\tPEER\t\tUNIT\tRATIO\tROUNDS\tWANTED\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s to %s\t%s\t%s\n", r.Operation, r.Inflight, r.Quota, r.with(),
			number(r.Ours), r.OursName, number(r.Peer), r.PeerName, r.Unit, number(r.Ratio), number(r.RatioMin), number(r.RatioMax), r.wanted(), r.verdict())
	}
	_ = t.Flush()
}

// with is what was there besides.
func (r row) with() string {
	switch {
	case r.XName != "":
		return fmt.Sprintf("%s %s", number(r.X), r.XName)
	case r.Existing > 0:
		return fmt.Sprintf("%d volumes", r.Existing)
	}
	return ""
}

func (r row) wanted() string {
	switch {
	case r.Exactly > 0:
		return "exactly " + number(r.Exactly)
	case r.Want > 0:
		return number(r.Want)
	}
	return ""
}

func (r row) verdict() string {
	switch {
	case !r.judged():
		return ""
	case r.reached():
		return "yes"
	}
	return "no"
}

// number has three digits that count.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) || v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
