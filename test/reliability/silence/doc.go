// Package silence tests a node one of whose two pools is on a disk that stops to answer, without
// an error (package disk). Nothing of that disk is in the page cache. While it is silent, the driver
// must answer all requests to the other pool and all reports on pools. Afterwards nothing is lost,
// and the driver is the same process. A driver that is stopped meanwhile must stop, and the next
// one must serve the other pool.
package silence
