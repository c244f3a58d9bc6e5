// Package snaptest tests package snapshot. Run is the suite that the engine must pass on every
// pool.Filesystem and pool.Host.
package snaptest
