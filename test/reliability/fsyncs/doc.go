// Package fsyncs looks for fsyncs of a btrfs, without a driver, that return before the disk has
// what they make durable. Several writers write and sync on a disk of package writelog, while
// others commit. Run mounts every state that a power cut leaves of that disk.
package fsyncs
