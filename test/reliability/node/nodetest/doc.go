// Package nodetest builds the drivers that tests start on a node, each once in a test binary.
package nodetest
