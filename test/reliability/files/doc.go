// Package files has the files of a volume: their content as one string that can be compared, and
// random changes to them, written atomically and durably.
package files
