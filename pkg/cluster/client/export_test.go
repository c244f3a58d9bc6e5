package client

// KeptBy is Cluster.KeptBy for caches that a test has filled.
var KeptBy = (*Cluster).keptBy
